"""Eviction policies: one file a policy, behind the protocol in base.py."""

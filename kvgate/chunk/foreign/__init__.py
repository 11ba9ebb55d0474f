"""Keys of KV systems that are not kvgate's own: one file a system, behind the protocol in base.py."""

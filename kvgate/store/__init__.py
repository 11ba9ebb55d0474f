"""The store: which object lies in which tiers, who may take how much, and what moves where."""

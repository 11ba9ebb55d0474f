"""Tiers: places that hold complete, verified copies of objects. One file a tier."""

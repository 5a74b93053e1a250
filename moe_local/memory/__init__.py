"""Tiers: slabs cut into slots, what is in them, reads from disk, and budgets."""

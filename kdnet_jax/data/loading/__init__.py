"""Patches of prepared cases, batch by batch."""

"""Scans: reading, geometry and preparation."""

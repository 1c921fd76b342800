"""Metrics on whole segmentations, on the host, in physical units."""

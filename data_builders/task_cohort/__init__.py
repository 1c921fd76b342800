"""Scans of any segmentation task as prepared cases (TFDS)."""

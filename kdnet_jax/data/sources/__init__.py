"""Folders of scans: layouts, names and label codings."""

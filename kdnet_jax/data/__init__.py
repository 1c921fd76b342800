"""Data: from folders of scans to batches of patches."""

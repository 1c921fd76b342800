"""Checks of scans, masks and cohorts."""

"""Scores of networks, of masks and of cohorts, and their comparison."""

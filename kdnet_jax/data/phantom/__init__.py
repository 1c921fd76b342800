"""The synthetic cohort."""

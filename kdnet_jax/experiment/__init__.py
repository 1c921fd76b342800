"""A run from its experiment to its report, and a study of runs."""

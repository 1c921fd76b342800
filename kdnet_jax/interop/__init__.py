"""Networks that other tools trained, and networks for other tools."""

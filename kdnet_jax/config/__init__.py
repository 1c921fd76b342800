"""The config: every key declared once, and its values read once into a frozen `Experiment`."""

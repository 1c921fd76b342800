"""Reading scans, preparing them, splitting them and loading patches."""

"""Errors, files and the machine: what everything else stands on."""

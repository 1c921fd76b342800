"""Errors, files and the machine: the basis of all other folders."""

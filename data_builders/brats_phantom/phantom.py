"""Synthetic gliomas in real anatomy; the generator follows."""

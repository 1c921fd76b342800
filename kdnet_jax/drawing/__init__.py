"""Planes, charts, figures and pages."""

"""Losses: segmentation and distillation terms, each logged by itself."""

"""KD-Net in JAX: a four-sequence teacher, distilled into a one-sequence student."""

__version__ = "0.1.0"

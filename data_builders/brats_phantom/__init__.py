"""Synthetic glioma cases in MNI152 anatomy as prepared cases (TFDS)."""

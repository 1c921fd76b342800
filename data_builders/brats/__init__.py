"""BraTS, Decathlon and own glioma scans as prepared cases (TFDS)."""

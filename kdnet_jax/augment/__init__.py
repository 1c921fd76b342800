"""The augmentation of patches, computed on the device."""

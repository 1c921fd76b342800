"""The segmentation of whole scans."""

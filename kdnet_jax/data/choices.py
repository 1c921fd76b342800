"""Choices of how training data are read, by the names that a config has for them.

They lie apart from what carries them out, which brings TensorFlow Datasets: 0.3 s of a prediction.
"""

from typing import Final

# Where the training cases lie (`loading/placement.py`).
PLACES: Final = ("auto", "device", "host", "stream")
# What is done about a case that cannot be read (`records/skipping.py`).
STOP, SKIP = "stop", "skip"
ON_READ_ERROR: Final = (STOP, SKIP)

"""Losses: weighted sums of registered terms, each logged separately.

`objective.py` has the registry and translates the options of a run into its loss; `segmentation.py`
has the terms against the reference, `distillation.py`, `features.py` and `masked.py` those against
a teacher. `output.py` is what they read of a network, `channels.py` how they compute on volumes.
"""

"""Validation cases as a network sees them: predicted on the working grid, where it is fast."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, PyTree, UInt8

from kdnet_jax.data.scans import prepare
from kdnet_jax.data.sources import labels
from kdnet_jax.prediction import inference


class Predicted(NamedTuple):
    """A numbered case, the network's probabilities "d h w k" and the reference's classes."""

    place: int
    case: prepare.PreparedCase
    probabilities: Float[np.ndarray, "d h w k"]
    reference: UInt8[np.ndarray, "d h w"]


def predict(
    predictor: inference.Predictor,
    params: PyTree,
    cases: Iterable[tuple[int, prepare.PreparedCase]],
    cavity: str,
) -> Iterator[Predicted]:
    """Yields each of the numbered cases with its prediction.

    Args:
        predictor: of one network.
        params: its parameters, on this process's own devices.
        cases: each with its number.
        cavity: what a resection cavity in the reference counts as (`labels.map_cavity`).
    """
    placed, task = predictor.place([params]), predictor.models[0].task
    for place, case in cases:
        assert case.label is not None  # prepared cases of a run have one
        probs = predictor.probabilities(placed, predictor.image(case))
        yield Predicted(place, case, probs, labels.map_cavity(case.label, cavity, task=task))

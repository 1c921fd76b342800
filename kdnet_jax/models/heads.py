"""Heads: a network's logits as probabilities, classes and regions of its task."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, UInt8

from kdnet_jax import task as task_lib

Kind = Literal["softmax", "regions"]


@dataclasses.dataclass(frozen=True)
class Head:
    """What the output channels of a network mean.

    Attributes:
        task: what is segmented.
        kind: "softmax" over the task's classes, or "regions": a sigmoid for each region.
    """

    task: task_lib.Task
    kind: Kind = "softmax"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the output channels: classes or regions."""
        return self.task.classes if self.kind == "softmax" else self.task.region_names

    @property
    def foreground(self) -> slice:
        """The channels that are not the background."""
        return slice(1, None) if self.kind == "softmax" else slice(None)

    @property
    def outside(self) -> tuple[float, ...]:
        """The probability of each output where nothing is segmented: all of it is background."""
        found = np.ones(len(self.outputs))
        found[self.foreground] = 0
        return tuple(found.tolist())

    def probabilities(
        self, logits: Float[Array, "*grid k"], temperature: float = 1.0
    ) -> Float[Array, "*grid k"]:
        """Returns softmax over classes, or a sigmoid per region, of `logits / temperature`."""
        scaled = logits / temperature
        softmax = self.kind == "softmax"
        return jax.nn.softmax(scaled, axis=-1) if softmax else jax.nn.sigmoid(scaled)

    def calibrated(
        self, probs: Float[np.ndarray, "*grid k"], temperature: float, biases: Sequence[float] = ()
    ) -> Float[np.ndarray, "*grid k"]:
        """Returns the probabilities of the logits z / T + b, on the host.

        p^(1/T) e^b, normalised: over the classes, or of each region over its two outcomes.

        Args:
            probs: of the outputs, of the logits z.
            temperature: T.
            biases: b of each output; empty: 0.
        """
        if temperature == 1 and not any(biases):
            return probs
        power = np.float32(1 / temperature)
        inside = probs**power
        if any(biases):
            inside = inside * np.exp(np.asarray(biases, np.float32))
        if self.kind == "softmax":
            return inside / inside.sum(axis=-1, keepdims=True)
        # An average may be above 1 by rounding.
        return inside / (inside + np.maximum(1 - probs, 0) ** power)

    def targets(self, labels: Integer[Array, "*grid"]) -> Float[Array, "*grid k"]:
        """Returns the reference as the head sees it: one-hot classes, or 0/1 per region.

        Written by comparison: a gather of one-hot rows makes XLA fold a large constant at compile
        time. Voxels of the ignore label are 0 in every channel (`known`).
        """
        classes = [labels == value for value in range(len(self.task.classes))]
        channels = classes
        if self.kind == "regions":
            channels = [
                jnp.any(jnp.stack([classes[c] for c in region.members]), axis=0)
                for region in self.task.regions
            ]
        return jnp.stack(channels, axis=-1).astype(jnp.float32)

    def known(self, labels: Integer[Array, "*grid"]) -> Float[Array, "*grid"] | None:
        """Returns 1 for voxels that have a label and 0 for those to ignore; `None`: all have."""
        if self.task.ignore is None:
            return None
        return (labels != self.task.ignore).astype(jnp.float32)

    def region_probabilities(
        self, probs: Float[np.ndarray, "*grid k"]
    ) -> Float[np.ndarray, "*grid r"]:
        """Returns the probability of each region, in the order of the task, on the host.

        A softmax gives one channel per class; a region is the sum of its classes.
        """
        if self.kind == "regions":
            return probs
        sums = [probs[..., list(region.members)].sum(axis=-1) for region in self.task.regions]
        return np.stack(sums, axis=-1)

    def limits(self, thresholds: Sequence[float] = ()) -> Sequence[float]:
        """Returns the threshold of each region, in the order of the task; 0.5 unless given."""
        return thresholds or (0.5,) * len(self.task.regions)

    def decide(
        self, probs: Float[np.ndarray, "*grid k"], thresholds: Sequence[float] = ()
    ) -> UInt8[np.ndarray, "*grid"]:
        """Returns the class of each voxel on the host.

        Args:
            probs: of the outputs.
            thresholds: of the regions; where there are none, a softmax decides for the most
                probable class, and a region lies where it is above 0.5.
        """
        if self.kind == "softmax" and not thresholds:
            return probs.argmax(axis=-1).astype(np.uint8)
        limits = np.asarray(self.limits(thresholds), probs.dtype)
        return self.paint(self.region_probabilities(probs) > limits)

    def paint(self, above: Bool[np.ndarray, "*grid r"]) -> UInt8[np.ndarray, "*grid"]:
        """Returns the classes of regions that are above their thresholds.

        Each is painted inside the regions painted before that contain it, in the task's order (as
        nnU-Net's region export, which does not look at what contains it).
        """
        classes = np.zeros(above.shape[:-1], np.uint8)
        painted: list[int] = []
        for place in self.task.painting:
            outer = [each for each in painted if self._contains(each, place)]
            inside = np.logical_and.reduce([above[..., each] for each in (place, *outer)])
            classes[inside] = self.task.regions[place].paint
            painted.append(place)
        return classes

    def _contains(self, outer: int, inner: int) -> bool:
        members = [set(self.task.regions[place].members) for place in (outer, inner)]
        return members[0] > members[1]

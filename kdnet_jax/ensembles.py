"""Several runs, such as folds or seeds, that segment together: their probabilities are averaged.

One run is the ensemble of one; there is no other way from a run to a segmentation of a scan.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from kdnet_jax import dataset_json, inference, runs, settings, sharding, teachers
from kdnet_jax import model as model_lib
from kdnet_jax.data import familiarity, prepare
from kdnet_jax.errors import UserError
from kdnet_jax.models import heads, networks

# Times a stage, such as "network": used as `with stage("network"):`.
Stage = Callable[[str], contextlib.AbstractContextManager]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What an ensemble says of a case.

    Attributes:
        classes: on the scan's own grid.
        probabilities: of the head's outputs, on the working grid.
        entropy: of the averaged probabilities, in nats (`inference.entropy`), on the working grid;
            `None` unless asked for.
        mutual_information: what of it is disagreement: the entropy less the mean entropy of the
            single answers (members, mirror images, overlapping windows); likewise.
    """

    classes: UInt8[np.ndarray, "x y z"]
    probabilities: Float[np.ndarray, "d h w k"]
    entropy: Float[np.ndarray, "d h w"] | None = None
    mutual_information: Float[np.ndarray, "d h w"] | None = None


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Runs that agree on sequences, spacing, outputs and windows.

    Attributes:
        members: the runs.
        mirror: average over the 8 mirror images.
        window_batch: windows at once on each device (or on each group that shares their depth).
        mesh: the devices; `None`: one.
        whole: no windows: a scan in one pass.
    """

    members: tuple[runs.Run, ...]
    mirror: bool
    window_batch: int = 1
    mesh: Mesh | None = None
    whole: bool = False

    @property
    def _model(self) -> model_lib.Model:
        return self.members[0].model

    @property
    def modalities(self) -> tuple[str, ...]:
        """The sequences that it needs."""
        return self._model.modalities

    @property
    def spacing(self) -> settings.Spacing:
        """The working voxel size in mm; `None` keeps the scan's own."""
        return self._model.spacing

    @functools.cached_property
    def orientation(self) -> str:
        """How the scans' voxels were taken in training; see `prepare.prepare_case`.

        Raises:
            UserError: the members differ.
        """
        known = {run.model.orientation: run.folder for run in self.members}
        if len(known) > 1:
            listed = ", ".join(f"{folder} with {value}" for value, folder in known.items())
            raise UserError(
                f"the networks were trained with different orientations: {listed}. Say by "
                "--orientation how the scans are to be taken."
            )
        return next(iter(known))

    def training_data(self) -> dict[str, Any] | None:
        """Returns what the first member that kept it knows of its training data.

        Raises:
            UserError: that file is damaged.
        """
        kept = (familiarity.read(run.folder) for run in self.members)
        return next((usual for usual in kept if usual is not None), None)

    @property
    def head(self) -> heads.Head:
        """What the outputs are."""
        return self._model.head

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs: classes or regions."""
        return self._model.outputs

    @property
    def disagreeing(self) -> bool:
        """Whether a voxel has several answers wherever it lies."""
        return self.mirror or len(self.members) > 1

    def compile(self, *, uncertainty: bool = False) -> float:
        """Compiles what `segment` needs, once for scans of any size; returns the seconds.

        Whole scans are compiled for when the first of their size comes.
        """
        started = time.monotonic()
        for member in self.members if not self.whole else ():
            self._program(member.model.network, uncertainty, member.model.window)
        return time.monotonic() - started

    @property
    def _at_once(self) -> int:
        return self.window_batch * (self.mesh.shape[sharding.DATA] if self.mesh else 1)

    def window(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns the window that a volume is segmented by."""
        if not self.whole:
            return self._model.window
        every = [member.model.network.divisor for member in self.members]
        d, h, w = (math.lcm(*axis) for axis in zip(*every, strict=True))
        space = self.mesh.shape[sharding.SPACE] if self.mesh else 1
        return inference.whole_window(shape, (d, h, w), space)

    @functools.cached_property
    def _params(self) -> list[Any]:
        if self.mesh is None:
            return [member.params for member in self.members]
        everywhere = sharding.replicated(self.mesh)
        return [jax.device_put(member.params, everywhere) for member in self.members]

    @functools.cached_property
    def _programs(self) -> dict[Any, Callable[[Any, Array], Array]]:
        return {}

    def _program(
        self, network: networks.Network, entropies: bool, window: tuple[int, int, int]
    ) -> Callable[[Any, Array], Array]:
        """Returns the one program of a network: members of one form share it."""
        key = (network, entropies, window)
        if key not in self._programs:
            member = next(each for each in self.members if each.model.network == network)
            predict = inference.make_predict(
                network.module().apply, self.head, self.mirror, entropies, self.mesh
            )
            shape = (self._at_once, *window, len(self.modalities))
            windows = jax.ShapeDtypeStruct(shape, np.float32)
            self._programs[key] = predict.lower(member.params, windows).compile()
        return self._programs[key]

    def _answers(
        self, image: Float[np.ndarray, "d h w m"], entropies: bool, progress: bool
    ) -> Float[np.ndarray, "d h w k"]:
        """Returns the mean over members, mirror images and windows, in one pass over the volume."""
        window = self.window(image.shape)
        programs = [self._program(each.model.network, entropies, window) for each in self.members]

        def predict(windows: Array) -> Array:
            total = programs[0](self._params[0], windows)
            for program, params in zip(programs[1:], self._params[1:], strict=True):
                total = total + program(params, windows)
            return total / len(self.members)

        return inference.sliding_window(
            predict,
            image,
            window,
            self._model.overlap,
            batch=self._at_once,
            progress=progress,
        )

    def segment(
        self,
        case: prepare.PreparedCase,
        *,
        uncertainty: bool = False,
        progress: bool = False,
        stage: Stage = contextlib.nullcontext,
    ) -> Prediction:
        """Segments a case that was prepared at the ensemble's spacing.

        Args:
            case: its sequences may be more than the networks see.
            uncertainty: also entropy and mutual information.
            progress: show a bar of windows on a terminal.
            stage: times "network" and "back".

        Raises:
            UserError: the case lacks a sequence.
        """
        if absent := [name for name in self.modalities if name not in case.modalities]:
            raise UserError(
                f"{case.case_id}: has {', '.join(case.modalities)}, but the network needs "
                f"{', '.join(absent)}."
            )
        channels = [case.modalities.index(name) for name in self.modalities]
        with stage("network"):
            image = (
                case.image
                if channels == [*range(case.image.shape[-1])]
                else (case.image[..., channels])
            )
            answers = self._answers(image, uncertainty, progress)
        with stage("back"):
            probs = answers[..., : len(self.outputs)]
            classes = runs.segmentation_on_scan(probs, self.head, case.geometry)
        if not uncertainty:
            return Prediction(classes, probs)
        entropy = inference.entropy(probs, self.head)
        # Not below 0 but for rounding: entropy is concave.
        disagreement = np.maximum(entropy - answers[..., -1], 0)
        return Prediction(classes, probs, entropy, disagreement)

    def known_cases(self) -> dict[pathlib.Path, model_lib.KnownCases]:
        """Returns by each member's folder the cases that it was trained or chosen on.

        What a student's teacher was trained on counts too.

        Raises:
            UserError: a run's split cannot be read.
        """
        return {run.folder: teachers.known_cases(run.folder) for run in self.members}


def of_run(run: runs.Run) -> Ensemble:
    """Returns the ensemble of one run, which segments as its config says."""
    return Ensemble(
        (run,),
        mirror=run.model.mirror,
        mesh=runs.prediction_mesh(run.model),
        whole=run.model.whole,
    )


def load_ensemble(
    folders: Sequence[pathlib.Path],
    *,
    mirror: bool | None = None,
    window_batch: int = 1,
    whole: bool | None = None,
    space: int | None = None,
) -> Ensemble:
    """Reads runs that are to segment together.

    Args:
        folders: of the runs.
        mirror: average over mirror images; `None` as the runs' configs say.
        window_batch: windows at once on each device.
        whole: segment a scan in one pass, without windows; `None` as the runs' configs say.
        space: devices that share its depth, or that of a window; see `runs.prediction_mesh`.

    Raises:
        UserError: no folder, one that is no run or is there twice, runs that cannot be averaged,
            or devices that cannot be divided so.
    """
    if not folders:
        raise UserError("no checkpoint is given: name the folder of at least one run.")
    members = tuple(runs.load_run(folder) for folder in folders)
    for index, member in enumerate(members):
        _check_agreement(members[0], member, mirror, whole)
        for other in members[:index]:
            if other.params_hash == member.params_hash:
                raise UserError(
                    f"{other.folder} and {member.folder} are the same network (equal parameters): "
                    "it would count twice. Name each run once."
                )
    if mirror is None:
        mirror = members[0].model.mirror
    if whole is None:
        whole = members[0].model.whole
    # Of each, so that every member's window is checked; they are the same.
    meshes = [runs.prediction_mesh(each.model, whole, space) for each in members]
    return Ensemble(members, mirror, window_batch, meshes[0], whole)


def _check_agreement(
    first: runs.Run, other: runs.Run, mirror: bool | None, whole: bool | None
) -> None:
    ours, theirs = _must_agree(first, mirror, whole), _must_agree(other, mirror, whole)
    for what, value in ours.items():
        if theirs[what] != value:
            raise UserError(
                f"{first.folder} and {other.folder} cannot be averaged: their {what} differ "
                f"({value} and {theirs[what]}). Name runs of one kind."
            )


def _spacing_text(spacing: settings.Spacing) -> str:
    if spacing is None:
        return "the scan's own"
    return f"{' x '.join(f'{mm:g}' for mm in np.atleast_1d(spacing))} mm"


def _must_agree(run: runs.Run, mirror: bool | None, whole: bool | None) -> dict[str, str]:
    model = run.model
    agree = {
        "tasks": f"{model.task.name} ({dataset_json.fingerprint(model.task)})",
        "sequences (model.modalities)": ", ".join(model.modalities),
        "spacings (data.spacing)": _spacing_text(model.spacing),
        "outputs (model.head)": ", ".join(model.outputs),
        "windows (inference.patch)": "x".join(map(str, model.window)),
        "overlaps (inference.overlap)": str(model.overlap),
    }
    # A choice made for all members need not be in their configs.
    if mirror is None:
        agree["mirrors (inference.mirror)"] = str(model.mirror)
    if whole is None:
        agree["passes (inference.whole)"] = str(model.whole)
    return agree

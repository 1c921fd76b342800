"""Several runs, such as folds or seeds, that segment together: their probabilities are averaged.

One run is the ensemble of one; there is no other way from a run to a segmentation of a scan.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree, UInt8

from kdnet_jax import dataset_json
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.core import typed
from kdnet_jax.data.scans import familiarity, prepare
from kdnet_jax.errors import UserError
from kdnet_jax.models import heads, networks, unet
from kdnet_jax.prediction import confidence as confidence_lib
from kdnet_jax.prediction import inference, predictors
from kdnet_jax.runs import calibration as calibration_lib
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import teachers, trained

_LOG = logging.getLogger(__name__)

# Times a stage, such as "network": used as `with stage("network"):`.
Stage = Callable[[str], contextlib.AbstractContextManager]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction of a case.

    Attributes:
        classes: on the scan's own grid.
        probabilities: of the head's outputs, on the working grid, calibrated.
        entropy: of the averaged probabilities, in nats (`inference.entropy`), on the working grid;
            `None` unless requested.
        mutual_information: what of the entropy before calibration is disagreement: it less the mean
            entropy of the single answers (members, mirror images, overlapping windows); likewise.
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
        predictor: of their models.
        lacking: sequences of the models that no scan has; they are 0, as where one was dropped in
            training.
    """

    members: tuple[trained.Run, ...]
    predictor: inference.Predictor
    lacking: tuple[str, ...] = ()

    @property
    def _model(self) -> model_lib.Model:
        return self.members[0].model

    @property
    def modalities(self) -> tuple[str, ...]:
        """The sequences that it needs."""
        return tuple(name for name in self._model.modalities if name not in self.lacking)

    @property
    def spacing(self) -> experiment_lib.Spacing:
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
                f"the networks were trained with different orientations: {listed}. Name "
                "runs of one orientation, or say by --orientation of kdnet_jax.predict how the "
                "scans are to be taken."
            )
        return next(iter(known))

    @property
    def hashes(self) -> dict[str, str]:
        """By each member's folder the hash of its parameters."""
        return {os.fspath(run.folder): run.params_hash for run in self.members}

    def training_data(self) -> typed.Json | None:
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

    @functools.cached_property
    def thresholds(self) -> tuple[float, ...]:
        """Of the regions, each the mean of the members'; empty: the fixed decision."""
        each = [member.model.thresholds for member in self.members]
        return tuple(float(np.mean(values)) for values in zip(*each, strict=True))

    @property
    def calibration(self) -> calibration_lib.Calibration:
        """Of one network that gets all of its sequences; anything else was measured on no case."""
        alone = len(self.members) == 1 and not self.lacking
        return self._model.calibration if alone else calibration_lib.NONE

    @property
    def disagreeing(self) -> bool:
        """Whether a voxel has several answers wherever it lies."""
        return self.predictor.mirror or len(self.members) > 1

    def compile(self, *, uncertainty: bool = False) -> float:
        """Compiles what `segment` needs, once for scans of any size; returns the seconds.

        Whole scans are compiled for when the first of their size comes.
        """
        started = time.monotonic()
        self.predictor.compile(self._params, entropies=uncertainty)
        return time.monotonic() - started

    @functools.cached_property
    def _params(self) -> list[PyTree]:
        return self.predictor.place([member.params for member in self.members])

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
        case = self._as_given(case)
        with stage("network"):
            answers = self.predictor.probabilities(
                self._params,
                self.predictor.image(case),
                entropies=uncertainty,
                progress=progress,
            )
        with stage("back"):
            probs = answers[..., : len(self.outputs)]
            # The decision is on what the network gives: calibration changes no mask.
            classes = predictors.segmentation_on_scan(
                probs, self.head, case.geometry, self.thresholds
            )
            calibrated = self.calibration.apply(self.head, probs)
        if not uncertainty:
            return Prediction(classes, calibrated)
        # Not below 0 but for rounding: entropy is concave.
        disagreement = np.maximum(inference.entropy(probs, self.head) - answers[..., -1], 0)
        entropy = inference.entropy(calibrated, self.head)
        return Prediction(classes, calibrated, entropy, disagreement)

    def _as_given(self, case: prepare.PreparedCase) -> prepare.PreparedCase:
        """Returns a case whose lacking sequences are 0, whether it has them or not."""
        if not self.lacking:
            return case
        kept = tuple(name for name in case.modalities if name not in self.lacking)
        channels = [case.modalities.index(name) for name in kept]
        given = dataclasses.replace(case, modalities=kept, image=case.image[..., channels])
        return prepare.with_absent(given, (*kept, *self.lacking))

    def confidence(
        self, case: prepare.PreparedCase, prediction: Prediction
    ) -> dict[str, confidence_lib.Confidence]:
        """Returns by region what the probabilities say of the mask, decided on the working grid."""
        probs = prediction.probabilities[case.inside]
        own = self.calibration.undo(self.head, probs)
        return confidence_lib.of_regions(
            probs,
            self.head.decide(own, self.thresholds),
            self.head,
            self.calibration,
            case.geometry.voxel_ml,
        )

    def known_cases(self) -> dict[pathlib.Path, model_lib.KnownCases]:
        """Returns by each member's folder the cases that it was trained or chosen on.

        What a student's teacher was trained on counts too.

        Raises:
            UserError: a run's split cannot be read.
        """
        return {run.folder: teachers.known_cases(run.folder) for run in self.members}


def of_run(run: trained.Run) -> Ensemble:
    """Returns the ensemble of one run, which segments as its config says."""
    return Ensemble((run,), predictors.predictor([run.model]))


def load_ensemble(
    folders: Sequence[pathlib.Path],
    *,
    sequences: str = "",
    bfloat16: bool | None = None,
    mirror: bool | None = None,
    window_batch: int = 1,
    whole: bool | None = None,
    space: int | None = None,
) -> Ensemble:
    """Reads runs that are to segment together.

    Args:
        folders: of the runs.
        sequences: of the runs' those that the scans have, with commas; "": all.
        bfloat16: see `unet.UNetConfig`; `None` as the runs' configs say.
        mirror: average over mirror images; `None` as the runs' configs say.
        window_batch: windows at once on each device.
        whole: segment a scan in one pass, without windows; `None` as the runs' configs say.
        space: devices that share its depth, or that of a window; see `predictors.prediction_mesh`.

    Raises:
        UserError: no folder, one that is no run or is a duplicate, runs that cannot be averaged or
            that need all of their sequences, a CPU that has no bfloat16, or devices that cannot be
            divided so.
    """
    if not folders:
        raise UserError("no checkpoint is given: name the folder of at least one run.")
    members = tuple(_computed(trained.load_run(folder), bfloat16) for folder in folders)
    for member in members:
        if member.undecided:
            _LOG.info(
                f"note: {member.folder} is to have thresholds (inference.thresholds), which a run "
                "chooses when its training ends; until then its decision is the fixed one"
            )
        _check_agreement(members[0], member, mirror, whole)
    trained.check_distinct(members, "Name each run once.")
    lacking = _lacking(members, sequences)
    predictor = predictors.predictor(
        [member.model for member in members],
        mirror=mirror,
        whole=whole,
        space=space,
        window_batch=window_batch,
    )
    return Ensemble(members, predictor, lacking)


def _computed(run: trained.Run, bfloat16: bool | None) -> trained.Run:
    network = run.model.network
    if bfloat16 is not None:
        network = networks.computed(network, bfloat16=bfloat16)
    # Asked first: the form of the convolutions may have to be compiled.
    slow = network.bfloat16 and jax.default_backend() == "cpu"
    if slow and unet.block_options(network)["dtype"] == jnp.bfloat16:
        why = (
            "it is slower than float32 here: it takes a processor that has it (avx512_bf16 or "
            "amx_bf16 among the flags in /proc/cpuinfo) and oneDNN's convolutions on one device"
        )
        if bfloat16:
            raise UserError(f"bfloat16 is asked for, but {why}. Leave it out.")
        _LOG.warning(
            f"Note: {run.folder} computes in bfloat16 (model.bfloat16=true), but {why}. "
            "--nobfloat16 computes in float32."
        )
    return dataclasses.replace(run, model=dataclasses.replace(run.model, network=network))


def _lacking(members: Sequence[trained.Run], sequences: str) -> tuple[str, ...]:
    """Returns the sequences that scans lack which have only `sequences`; empty: they have all."""
    if not sequences:
        return ()
    model = members[0].model
    given = model.task.read_modalities(sequences, "sequences")
    if unknown := [name for name in given if name not in model.modalities]:
        raise UserError(
            f"sequences holds {unknown[0]!r}, but the network sees {', '.join(model.modalities)}. "
            "Name those of these that the scans have."
        )
    lacking = tuple(name for name in model.modalities if name not in given)
    for member in members if lacking else ():
        if not teachers.knows_gaps(member.folder):
            raise UserError(
                f"sequences leaves out {', '.join(lacking)}, but {member.folder} was trained "
                "without modality dropout, so it needs all of its sequences. Use a student of "
                f"{', '.join(given)}, or a network that was trained with "
                "--config.augment.modality_dropout above 0."
            )
    return lacking


def _check_agreement(
    first: trained.Run, other: trained.Run, mirror: bool | None, whole: bool | None
) -> None:
    ours, theirs = _must_agree(first, mirror, whole), _must_agree(other, mirror, whole)
    for what, value in ours.items():
        if theirs[what] != value:
            raise UserError(
                f"{first.folder} and {other.folder} cannot be averaged: their {what} differ "
                f"({value} and {theirs[what]}). Name runs of one kind."
            )


def _must_agree(run: trained.Run, mirror: bool | None, whole: bool | None) -> dict[str, str]:
    model = run.model
    agree = {
        "tasks": f"{model.task.name} ({dataset_json.fingerprint(model.task)})",
        "sequences (model.modalities)": ", ".join(model.modalities),
        "spacings (data.spacing)": experiment_lib.spacing_text(model.spacing),
        "outputs (model.head)": ", ".join(model.outputs),
        "windows (inference.patch)": "x".join(map(str, model.window)),
        "overlaps (inference.overlap)": str(model.overlap),
        "decisions (inference.thresholds)": "validation" if model.thresholds else "fixed",
    }
    # A choice made for all members need not be in their configs.
    if mirror is None:
        agree["mirrors (inference.mirror)"] = str(model.mirror)
    if whole is None:
        agree["passes (inference.whole)"] = str(model.whole)
    return agree

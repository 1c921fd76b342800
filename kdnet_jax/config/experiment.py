"""Experiment: all that a config says of a run, checked, frozen, and sorted into parts.

A part has the names of its section's keys (`keys.py` has their meaning), each value in the form in
which it is used. `reading.py` makes an experiment; nothing else reads a config.
"""

import dataclasses
import json
import pathlib

from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment
from kdnet_jax.config import flat_keys
from kdnet_jax.errors import UserError
from kdnet_jax.losses import distillation, segmentation
from kdnet_jax.models import heads, networks
from kdnet_jax.training import optimizers, options

# mm: of all axes, or of depth, height and width; `None`: each scan's own.
Spacing = float | tuple[float, float, float] | None


def spacing_text(spacing: Spacing) -> str:
    """Returns a working voxel size for people to read."""
    if spacing is None:
        return "the scan's own"
    sizes = spacing if isinstance(spacing, tuple) else (spacing,)
    return f"{' x '.join(f'{mm:g}' for mm in sizes)} mm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phantom:
    """The synthetic cohort: the keys of `data.phantom`."""

    cases: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The source of the cases and their preparation: the keys of `data`.

    Attributes:
        modalities: the channels that are read of each case, in the task's order.
        spacing: working voxel size in mm, one number or one each along depth, height and width;
            `None` keeps the scan's own.
        label_convention: `None` for that of the release.
    """

    data_dir: str
    release: str
    label_convention: str | None
    root: pathlib.Path
    modalities: tuple[str, ...]
    spacing: Spacing
    orientation: str
    resection_cavity: str
    allow_skull: bool
    skip_bad_cases: bool
    incomplete: bool
    on_read_error: str
    workers: int
    phantom: Phantom

    def phantom_spacing(self) -> float:
        """Returns the voxel size of synthetic scans; raises UserError where it is not one size."""
        if not isinstance(self.spacing, float):
            raise UserError(
                f"data.spacing is {self.spacing or 0}: synthetic scans need one voxel size in mm."
            )
        return self.spacing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """The parts of the cohort: the keys of `split`."""

    file: str
    seed: int
    train: float
    validation: float
    test: float
    folds: int
    fold: int
    labelled: int
    labelled_seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
    """The sampling of patches: the keys of `loader`; `patch` is "d h w" in voxels."""

    patch: tuple[int, int, int]
    batch: int
    tumour_share: float
    unlabelled_share: float
    crops_per_read: int
    threads: int
    prefetch_batches: int
    cache: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
    """The prediction of whole scans: the keys of `inference`; `patch` is "d h w" in voxels."""

    patch: tuple[int, int, int]
    overlap: float
    mirror: bool
    thresholds: str
    whole: bool

    @property
    def chooses_thresholds(self) -> bool:
        """Whether the regions' thresholds are chosen on the validation cases."""
        return self.thresholds == "validation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """The layout of the devices: the keys of `mesh`; see `sharding.make_mesh`."""

    data: int
    space: int
    state: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher of a student: one that is given, or one that has to be trained first.

    Attributes:
        checkpoint: where the given one lies; "" where there is none; of several, with ; between.
        weights: of several; empty: all count alike.
        maps: folder of the given one's probabilities; "" where there is none.
        folds: of a given one of nnU-Net; empty: all there are.
        to_train: `None` where one is given.
    """

    checkpoint: str
    weights: tuple[float, ...]
    maps: str
    folds: tuple[str, ...]
    to_train: "Experiment | None"

    @property
    def folders(self) -> tuple[pathlib.Path, ...]:
        """Where the given one, or each of several, lies."""
        parts = (each.strip() for each in self.checkpoint.split(";"))
        return tuple(pathlib.Path(each) for each in parts if each)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run as requested.

    Attributes:
        role: "teacher", "baseline" or "student".
        preset: the name of the config's preset.
        seed: of the parameters, the patches and the augmentation.
        profile: steps to profile; 0 for none.
        task: what is segmented.
        data: which cases, and how they are prepared.
        split: who is in which part.
        loader: how patches are drawn.
        modalities: the channels that the network sees, in the task's order.
        network: its form.
        loss: the loss against the reference.
        distillation: of a student; `None` for the other roles.
        optimizer: rule and schedule.
        augment: what is drawn for each patch.
        train: budget and intervals.
        inference: how whole scans are predicted.
        mesh: how the devices are laid out.
        teacher: of a student; `None` for the other roles.
        document: the config that says so, complete: what config.json holds.
    """

    role: str
    preset: str
    seed: int
    profile: int
    task: task_lib.Task
    data: Data
    split: Split
    loader: Loader
    modalities: tuple[str, ...]
    network: networks.Network
    loss: segmentation.LossOptions
    distillation: distillation.DistillationOptions | None
    optimizer: optimizers.OptimizerOptions
    augment: augment.AugmentOptions
    train: options.TrainOptions
    inference: Inference
    mesh: Mesh
    teacher: Teacher | None
    document: flat_keys.Document = dataclasses.field(repr=False)

    @property
    def head(self) -> heads.Head:
        """What the network's outputs are."""
        return heads.Head(self.task, self.network.head)

    @property
    def channels(self) -> tuple[int, ...]:
        """Positions of the network's channels among the data's."""
        return tuple(self.data.modalities.index(name) for name in self.modalities)

    @property
    def uses_unlabelled(self) -> bool:
        """Whether it learns from training cases without a reference, if there are any."""
        by_teacher = self.role == "student" and self.loader.unlabelled_share > 0
        return by_teacher or self.loss.reconstructs

    @property
    def modality_dropout(self) -> float:
        """With what probability each of the network's sequences is dropped in its training."""
        # Of a student it is said for the teacher that it trains first.
        return 0.0 if self.role == "student" else self.augment.modality_dropout

    @property
    def hash(self) -> str:
        """SHA-256 of all that changes what the run computes."""
        return flat_keys.hash_of(self.document)

    def to_json(self) -> str:
        """Returns the config as the text of config.json."""
        return json.dumps(self.document, indent=2, sort_keys=True) + "\n"

    def of_task(self, task: task_lib.Task) -> "Experiment":
        """Returns the experiment with the same task as its cases have it: with their statistics."""
        return dataclasses.replace(self, task=task)

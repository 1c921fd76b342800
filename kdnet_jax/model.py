"""What one must know of a trained network to use it on scans, and its form in JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from kdnet_jax import settings
from kdnet_jax.data import geometry
from kdnet_jax.models import heads, networks


@dataclasses.dataclass(frozen=True)
class Model:
    """A network, what it sees, and how whole scans go through it.

    Attributes:
        role: "teacher", "baseline" or "student".
        network: its form.
        modalities: the sequences that it sees, in the order of its channels.
        spacing: the working voxel size in mm; `None` keeps the scan's own.
        window: edges of the prediction window, "d h w" in voxels.
        overlap: share of a window that its neighbour covers too.
        mirror: average over the 8 mirror images.
        whole: no windows: a scan in one pass.
        space: devices that shared the depth of a patch in training.
        orientation: see `prepare.prepare_case`.
        allow_skull: scans with the skull on were taken in training.
        resection_cavity: what a resection cavity counted as.
    """

    role: str
    network: networks.Network
    modalities: tuple[str, ...]
    spacing: float | None
    window: tuple[int, int, int]
    overlap: float = 0.5
    mirror: bool = False
    whole: bool = False
    space: int = 1
    orientation: str = geometry.HEADER
    allow_skull: bool = False
    resection_cavity: str = "background"

    @property
    def head(self) -> heads.Head:
        """What the outputs are."""
        return self.network.head

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs: classes or regions."""
        return self.network.outputs


def of_config(config: config_dict.ConfigDict, values: settings.Settings) -> Model:
    """Returns the model that a config describes; `values` are `settings.read_settings` of it."""
    return Model(
        role=config.role,
        network=values.network,
        modalities=values.modalities,
        spacing=values.spacing,
        window=values.window,
        overlap=config.inference.overlap,
        mirror=bool(config.inference.mirror),
        # Runs of before these keys have none.
        whole=config.inference.get("whole", False),
        space=config.mesh.space,
        orientation=config.data.get("orientation", geometry.HEADER),
        allow_skull=config.data.allow_skull,
        resection_cavity=config.data.resection_cavity,
    )


def to_json(model: Model) -> dict[str, Any]:
    """Returns the model as JSON."""
    plain = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return plain | {"network": networks.to_json(model.network)}


def from_json(values: Mapping[str, Any]) -> Model:
    """Returns the model that `to_json` wrote.

    Raises:
        UserError: its network is of no kind that is known here.
        TypeError: fields are missing, or unknown.
    """
    tuples = {key: tuple(values[key]) for key in ("modalities", "window") if key in values}
    return Model(**{**values, **tuples, "network": networks.from_json(values["network"])})

"""nnU-Net's plans.json and dataset.json: the network, and what it sees."""

import dataclasses
import itertools
import pathlib
from typing import Final

from kdnet_jax.core import documents, typed
from kdnet_jax.errors import UserError
from kdnet_jax.interop import json_files, network_kinds, nnunet_task
from kdnet_jax.models import adapted

# To which sides the axes grow that each reader gives, of files stored as BraTS stores them (LPS);
# the last turns any file.
_AXES: Final = {"SimpleITKIO": "SPL", "NibabelIO": "SPL", "NibabelIOWithReorient": "SAR"}


@dataclasses.dataclass(frozen=True)
class Planned:
    """What a configuration of the plans says; see `foreign_model.ForeignModel`."""

    kind: network_kinds.Kind
    network: adapted.RawConfig
    seen: nnunet_task.Read
    axes: str
    spacing: json_files.Spacing
    window: tuple[int, int, int]


def read(folder: pathlib.Path, name: str) -> Planned:
    """Reads plans.json and dataset.json of a folder of results.

    Args:
        folder: where they lie.
        name: of the configuration, such as "3d_fullres".

    Raises:
        UserError: they are damaged, or of something that cannot be used here.
    """
    plans = documents.read_object(folder / "plans.json")
    dataset = documents.read_object(folder / "dataset.json")
    where = f"{folder / 'plans.json'}, {name}"
    plan = _configuration(plans, name, where)
    window = json_files.need(plan, "patch_size", where, list)
    if len(window) == 2:
        raise UserError(f"{where}: a 2D configuration; only 3D ones can be used here.")
    if plan.get("previous_stage"):
        raise UserError(
            f"{where}: the second stage of a cascade, which sees the masks of "
            f"{plan['previous_stage']} too; give a 3d_fullres or 3d_lowres configuration."
        )
    seen = nnunet_task.read(dataset, plans, plan, folder, where)
    kind, network = _network(plan, len(seen.modalities), len(seen.order), where)
    return Planned(
        kind,
        network,
        seen,
        _axes(plans, where),
        json_files.spacing(json_files.need(plan, "spacing", where, object), f"{where}: spacing"),
        json_files.edges(window, f"{where}: patch_size"),
    )


def _configuration(plans: typed.JsonView, name: str, where: str) -> typed.Json:
    """Returns a configuration with what it inherits."""
    known = json_files.need(plans, "configurations", where, dict)
    chain: list[str] = []
    while name:
        if name not in known or name in chain:
            raise UserError(
                f"{where}: the configuration {name!r} is {'its own heir' if chain else 'missing'}; "
                f"there are {', '.join(known)}."
            )
        chain.append(name)
        name = json_files.need(known, name, where, dict).get("inherits_from", "")
        json_files.expect(name, str, f"{where}: inherits_from")
    plan: typed.Json = {}
    for each in reversed(chain):
        plan.update(known[each])
    return plan


def _axes(plans: typed.JsonView, where: str) -> str:
    """Returns the letters to which the network's axes grow.

    The network sees the reader's axes in the order `transpose_forward`, and so are its kernels,
    its patch and its spacing written.
    """
    reader = str(plans.get("image_reader_writer"))
    if reader not in _AXES:
        raise UserError(
            f"{where}: image_reader_writer is {reader!r}; how its axes run is known of "
            f"{', '.join(_AXES)}."
        )
    order = plans.get("transpose_forward", [0, 1, 2])
    if order not in [list(each) for each in itertools.permutations(range(3))]:
        raise UserError(f"{where}: transpose_forward is {order!r}; expected an order of 0, 1, 2.")
    return "".join(_AXES[reader][axis] for axis in order)


def _network(
    plan: typed.JsonView, channels: int, outputs: int, where: str
) -> tuple[network_kinds.Kind, adapted.RawConfig]:
    architecture = plan.get("architecture") or _older(plan, where)
    json_files.expect(architecture, dict, f"{where}: architecture")
    name = json_files.need(architecture, "network_class_name", where, str)
    kind = network_kinds.of_class(name, f"{where}: network_class_name")
    given = json_files.need(architecture, "arch_kwargs", where, dict) | {
        "input_channels": channels,
        "num_classes": outputs,
    }
    network, _ = network_kinds.read(kind, given, f"{where}: arch_kwargs")
    return kind, network


def _older(plan: typed.JsonView, where: str) -> typed.Json:
    """Returns the architecture of plans older than nnU-Net 2.4, as it reads them itself."""
    name = json_files.need(plan, "UNet_class_name", where, object)
    features = json_files.need(plan, "UNet_base_num_features", where, int)
    most = json_files.need(plan, "unet_max_num_features", where, int)
    encoder = json_files.need(plan, "n_conv_per_stage_encoder", where, list)
    blocks = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": name,
        "arch_kwargs": {
            "n_stages": len(encoder),
            "features_per_stage": [min(features * 2**i, most) for i in range(len(encoder))],
            "conv_op": "Conv3d",
            "kernel_sizes": json_files.need(plan, "conv_kernel_sizes", where, object),
            "strides": json_files.need(plan, "pool_op_kernel_sizes", where, object),
            blocks: encoder,
            "n_conv_per_stage_decoder": json_files.need(
                plan, "n_conv_per_stage_decoder", where, object
            ),
            "conv_bias": True,
            "norm_op": "InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "LeakyReLU",
        },
    }

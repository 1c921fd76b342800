"""Tasks that are no glioma, for the tests of models of other tools."""

import dataclasses
import pathlib
from typing import Any, Final

from kdnet_jax import dataset_json
from tests.helpers import foreign_folders as folders

# Two channels, two classes, voxels that nobody labelled.
DATASET: Final = {
    "channel_names": {"0": "ADC", "1": "CT"},
    "labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3},
    "numTraining": 4,
    "file_ending": ".nii.gz",
    "name": "organs",
}
STATISTICS: Final = (-100.0, 300.0, 40.0, 80.0)
# Overlapping regions, in an order of their own, one of them of one class.
REGIONS: Final = dataset_json.parse(
    {
        "name": "cells",
        "channel_names": {"0": "a", "1": "b", "2": "c"},
        "labels": {"background": 0, "all": [1, 2, 3], "core": [1, 3], "dot": 3},
        "regions_class_order": [2, 1, 3],
        "kdnet": {
            "normalisation": {"a": "zscore", "b": "rescale", "c": "ct"},
            "statistics": {"c": list(STATISTICS)},
            "classes": ["background", "ring", "rim", "dot"],
            "regions": ["core", "dot", "all"],
            "student": "b",
            "noun": "cell",
        },
    },
    "cells",
)


def properties() -> dict[str, Any]:
    """Returns what plans.json says of the intensities of `DATASET`."""
    low, high, mean, deviation = STATISTICS
    ct = {"percentile_00_5": low, "percentile_99_5": high, "mean": mean, "std": deviation}
    return {"0": {}, "1": ct | {"min": -1000.0, "max": 2000.0, "median": 35.0}}


def plan(config: Any = folders.PLAIN, **changes: Any) -> dict[str, Any]:
    """Returns a configuration for `DATASET`: thick slices, z-scores over all voxels, and a CT."""
    return folders.plan(config, channels=2) | {
        "spacing": [3.0, 0.5, 0.75],
        "normalization_schemes": ["ZScoreNormalization", "CTNormalization"],
        "use_mask_for_norm": [False, False],
        **changes,
    }


def plans(configuration: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Returns plans.json for `DATASET`."""
    given = {"foreground_intensity_properties_per_channel": properties()} | changes
    return folders.plans({"3d_fullres": configuration}, **given)


# ------------------------------------------------------------------------------------- MONAI

SEGRESNET = dataclasses.replace(folders.SEGRESNET, out_channels=2)
WINDOW = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164}
WINDOW |= {"b_min": 0.0, "b_max": 1.0, "clip": True}
SOFTMAX = [{"_target_": "Activationsd", "keys": "pred", "softmax": True}]
SIGMOID = [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}]


def bundle(
    folder: pathlib.Path,
    *transforms: dict,
    config: object = SEGRESNET,
    outputs: tuple[str, ...] = ("background", "spleen"),
    post: list[dict] = SOFTMAX,
    channels: tuple[str, ...] = ("image",),
) -> pathlib.Path:
    """Writes a bundle as the model zoo's spleen_ct_segmentation."""
    tables = {"inputs": channels, "outputs": outputs}
    numbered = {key: {str(i): n for i, n in enumerate(t)} for key, t in tables.items()}
    made = folders.inference(
        folders.network_def(config, len(channels)),
        preprocessing={"_target_": "Compose", "transforms": list(transforms)},
        postprocessing={"_target_": "Compose", "transforms": post},
    )
    folders.bundle(folder, inference_json=made, metadata_json=folders.metadata(**numbered))
    state = folders.state(config, len(channels))
    folders.save(folder / "models" / "model.pt", state)
    return folder

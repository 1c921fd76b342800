"""Documents of models, of which the tests make cards."""

from typing import Any

from kdnet_jax import task as task_lib
from kdnet_jax.interop.export import scores
from kdnet_jax.metrics import cases
from kdnet_jax.models import networks, unet
from kdnet_jax.runs import model as model_lib

MODEL = model_lib.Model(
    task_lib.GLIOMA, "student", unet.UNetConfig(widths=(2, 4)), ("t2",), 1.0, (8, 8, 8)
)


def score(case: str, region: str, dice: float, **changes: Any) -> cases.RegionScore:
    """Returns the scores of a region of a case; all that can be its Dice is."""
    numbers = {"dice": dice, "nsd": dice, "hd95_mm": 10 * dice, "nsd_2mm": dice}
    numbers |= {"lesion_dice": dice, "lesion_hd95_mm": 1.0, "sensitivity": 1.0, "specificity": 1.0}
    counts = dict.fromkeys(("lesions_ref", "lesions_pred", "lesions_missed", "lesions_false"), 0)
    empty = {"ref_empty": False, "pred_empty": False} | changes
    volumes = {"volume_ref_mm3": 1.0, "volume_pred_mm3": 1.0}
    return cases.RegionScore(case=case, region=region, **numbers, **counts, **empty, **volumes)


def document(**changes: Any) -> dict[str, Any]:
    """Returns what `model.json` of `MODEL` says beside the model."""
    training = {
        "cases": 4,
        "validation_cases": 2,
        "steps": 9,
        "synthetic": False,
        "source": "BraTS",
    }
    return {
        "network": networks.to_json(MODEL.network),
        "parameters": 1234,
        "parameters_sha256": "f" * 64,
        "step": 6,
        "input": {"intensities": "z-scores", "axes": "b d h w m"},
        "training": training,
        "licence": "CC0-1.0",
    } | changes


def with_scores(
    *rows: cases.RegionScore, teacher: Any = None, calibration: Any = None
) -> dict[str, Any]:
    """Returns the document of a model with these scores on test cases."""
    summary = cases.summarise(rows, task=task_lib.GLIOMA) | {"hd95": "of the surfaces"}
    return document(test=scores.collect(rows, summary, teacher, calibration))

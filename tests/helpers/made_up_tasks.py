"""Tasks other than the glioma: one class, two classes, overlapping regions and an ignore label."""

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib

LESION = dataset_json.parse(
    {
        "name": "white matter lesions",
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "lesion": 1},
    },
    "lesion",
)
PROSTATE = dataset_json.parse(
    {
        "name": "prostate",
        "channel_names": {"0": "T2", "1": "ADC"},
        "labels": {"background": 0, "peripheral zone": 1, "transition zone": 2},
        "kdnet": {"fallback": {"transition zone": "peripheral zone"}, "noun": "gland"},
    },
    "prostate",
)
# "wall" and "scar" overlap in class 2, and "clot" lies within "scar".
HEART = dataset_json.parse(
    {
        "name": "heart",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "wall": [1, 2], "scar": [2, 3], "clot": 3, "ignore": 4},
        "regions_class_order": [1, 2, 3],
    },
    "heart",
)


def of_regions(count: int) -> task_lib.Task:
    """Returns a task of one class a region, "region 1" and so on."""
    return dataset_json.parse(
        {
            "name": f"{count} structures",
            "channel_names": {"0": "T1", "1": "T2"},
            "labels": {"background": 0} | {f"region {n}": n for n in range(1, count + 1)},
        },
        "structures",
    )

"""The model card that goes with a model: what it is, what it was measured on, what it is not.

After Mitchell et al., "Model cards for model reporting", FAT* 2019.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from kdnet_jax import conventions
from kdnet_jax.model import Model

_NO_DEVICE = (
    "**This is no medical device.** It was not cleared or tested for clinical use. It must not be "
    "used for diagnosis, treatment or triage."
)
_METRICS = (
    ("dice", "Dice", 3),
    ("nsd", "NSD at 1 mm", 3),
    ("hd95_mm", "HD95, mm", 1),
)


def render(name: str, model: Model, document: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Returns the card as Markdown.

    Args:
        name: of the model.
        model: the network and how it is used.
        document: the rest of `model.json`.
        files: name -> what it is, of all that lies beside the card.

    Raises:
        KeyError, TypeError, ValueError: the document is not as `export` writes it.
    """
    sections = [
        f"# {escaped(name)}",
        _NO_DEVICE,
        _what(model, document),
        _training(document),
        _test(document),
        _limits(model, document),
        _use(model, files),
        _origin(document),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def escaped(text: object) -> str:
    """Returns a text as it is to be read, whatever it means in Markdown or HTML."""
    plain = " ".join(str(text).split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", plain)


def _what(model: Model, document: Mapping[str, Any]) -> str:
    network = document["network"]
    members = network.get("members", 1)
    spacing = f"{model.spacing:g} mm" if model.spacing else "the scan's own"
    rows = {
        "Input": ", ".join(model.modalities),
        "Output": ", ".join(model.outputs),
        "Role": model.role,
        "Network": network["family"] + (f", {members} averaged" if members > 1 else ""),
        "Parameters": f"{document['parameters']:,}",
        "Working voxel size": spacing,
        "Window, voxels": " x ".join(map(str, model.window)),
        "Labels of its masks": "BraTS 2021 (1 NCR, 2 ED, 4 ET), or as asked for",
        "Normalisation": document["input"]["intensities"],
        "Axes": document["input"]["axes"],
    }
    table = "\n".join(f"| {key} | {escaped(value)} |" for key, value in rows.items())
    sequences = "one MRI sequence" if len(model.modalities) == 1 else "MRI sequences"
    return (
        f"## What it is\n\nIt segments a glioma in {sequences} "
        f"({', '.join(model.modalities)}) into enhancing tumour (ET), tumour core (TC) and whole "
        f"tumour (WT).\n\n| | |\n|---|---|\n{table}"
    )


def _training(document: Mapping[str, Any]) -> str:
    data = document.get("training")
    if not data:
        made_by = escaped(document.get("made_by", "another tool"))
        return f"## Training\n\nTrained by {made_by}; its files say no more than `model.json`."
    lines = [f"{data['cases']} training and {data['validation_cases']} validation cases"]
    if data["synthetic"]:
        lines.append("all of them **synthetic**: it has never seen a patient")
    else:
        lines.append(f"of {escaped(data['source'])}")
    text = ", ".join(lines) + f". Step {document['step']} of {data['steps']} was chosen by the "
    text += "validation Dice." if data["validation_cases"] else "training's end."
    if teacher := document.get("teacher"):
        digest = escaped(teacher["hash"][:16])
        text += (
            f" It learned from a teacher too (parameters SHA-256 `{digest}...`), which is not part "
            "of it."
        )
    return f"## Training\n\n{text}"


def _test(document: Mapping[str, Any]) -> str:
    test = document.get("test")
    if not test:
        return "## Test\n\nNo test scores come with it: nothing is known here of how good it is."
    header = ["Region", *(heading for _, heading, _ in _METRICS), "Cases", "Reference empty"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    rows = [(name, test["regions"][name]) for name in conventions.REGIONS]
    for name, row in rows:
        cells = [_mean(row[key], digits) for key, _, digits in _METRICS]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['cases']:d} | {row['ref_empty']:d} |")
    missed, masks = (sum(row[key] for _, row in rows) for key in ("missed", "cases"))
    cases_text = "synthetic cases" if document["training"]["synthetic"] else "cases"
    text = (
        f"Means over {test['cases']:d} held-out {cases_text}, each on its scan's own grid, with "
        "95 % intervals over the cases (of one training run: another seed may differ by more). "
        f"{missed:d} of {masks:d} region masks are empty where the reference is not. "
        f"HD95: {escaped(test['hd95'])}."
    )
    if teacher := test.get("teacher"):
        means = ", ".join(f"{name} {teacher['dice'][name]:.3f}" for name, _ in rows)
        text += (
            f"\n\nIts teacher, on {escaped(', '.join(teacher['modalities']))}, has a mean Dice of "
            f"{means} on the same {teacher['cases']:d} cases."
        )
    return "## Test\n\n" + "\n".join(lines) + f"\n\n{text}"


def _mean(found: Mapping[str, float | None], digits: int) -> str:
    mean, low, high = (found[key] for key in ("mean", "low", "high"))
    if mean is None:
        return "-"
    if low is None or high is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _limits(model: Model, document: Mapping[str, Any]) -> str:
    points = [
        "For research on segmentation: comparing methods, and pre-segmentation that an expert "
        "corrects voxel by voxel.",
        "Untested: other diseases, children, scans after surgery, other scanners and protocols "
        "than those of the training, and heads that are not skull-stripped.",
        "A scan that looks unlike the training's gets a warning from `predict` and `segment`; no "
        "warning is no proof.",
        "A scan without a tumour may get a mask, and a tumour may get none.",
    ]
    if len(model.modalities) == 1:
        points.insert(
            2,
            f"It sees {model.modalities[0]} alone: what that sequence does not show, it guesses "
            "from what tumours looked like in training.",
        )
    if document.get("training", {}).get("synthetic"):
        points.insert(0, "Trained on synthetic images: a demonstration, of no use on patients.")
    return "## Intended use and limits\n\n" + "\n".join(f"- {point}" for point in points)


def _use(model: Model, files: Mapping[str, str]) -> str:
    one = len(model.modalities) == 1
    scan = (
        '"scan.nii.gz"'
        if one
        else "{" + ", ".join(f'"{name}": "{name}.nii.gz"' for name in model.modalities) + "}"
    )
    listed = "\n".join(f"| `{name}` | {what} |" for name, what in files.items())
    return f"""## Use

```python
import kdnet_jax

found = kdnet_jax.load("DIR").segment({scan})
found.save("mask.nii.gz")
print(found.volumes_ml, found.warnings)
```

or `python -m kdnet_jax.predict --checkpoint=DIR --input=... --output=mask.nii.gz`.

| file | what it is |
|---|---|
{listed}"""


def _origin(document: Mapping[str, Any]) -> str:
    licence = escaped(document.get("licence") or "not stated: ask who gave you this model")
    made = {"parameters SHA-256": document["parameters_sha256"], **document.get("provenance", {})}
    return f"""## Licence and origin

Licence of the parameters: {licence}. The code of kdnet\\_jax is under Apache-2.0.

```json
{json.dumps(made, indent=1)}
```

Cite Hu, Maillard et al., "Knowledge distillation from multi-modal to mono-modal segmentation
networks", MICCAI 2020, and kdnet\\_jax."""

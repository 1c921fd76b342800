"""The model card that goes with a model: what it is, what it was measured on, what it is not.

After Mitchell et al., "Model cards for model reporting", FAT* 2019.
"""

import json
import re
from collections.abc import Mapping

from kdnet_jax import task as task_lib
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.core import typed
from kdnet_jax.data.sources import labels
from kdnet_jax.runs import calibration
from kdnet_jax.runs.model import Model

_NO_DEVICE = (
    "**This is no medical device.** It was not cleared or tested for clinical use. It must not be "
    "used for diagnosis, treatment or triage."
)
# The noun of a task that names none.
_ANY_NOUN = "foreground"
_METRICS = (
    ("dice", "Dice", 3),
    ("nsd", "NSD at 1 mm", 3),
    ("hd95_mm", "HD95, mm", 1),
)


def render(
    name: str,
    model: Model,
    document: typed.JsonView,
    files: Mapping[str, str],
    *,
    on_hub: bool = False,
) -> str:
    """Returns the card as Markdown.

    Args:
        name: of the model.
        model: the network and how it is used.
        document: the rest of `model.json`.
        files: name -> what it is, of all that lies beside the card.
        on_hub: it is read on the Hugging Face Hub, from where the folder is fetched first.

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
        _use(model, files, on_hub),
        _origin(document),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def escaped(text: object) -> str:
    """Escapes a text so that Markdown and HTML show it unchanged."""
    plain = " ".join(str(text).split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", plain)


def _what(model: Model, document: typed.JsonView) -> str:
    network = document["network"]
    members = network.get("members", 1)
    rows = {
        "Input": ", ".join(model.modalities),
        "Output": ", ".join(model.outputs),
        "Role": model.role,
        "Network": network["family"] + (f", {members} averaged" if members > 1 else ""),
        "Parameters": f"{document['parameters']:,}",
        "Working voxel size": experiment_lib.spacing_text(model.spacing),
        "Window, voxels": " x ".join(map(str, model.window)),
        "Decision": model.decision,
        "Calibration": _calibration(model),
        "Labels of its masks": _labels(model.task),
        "Normalisation": document["input"]["intensities"],
        "Axes": document["input"]["axes"],
    }
    table = "\n".join(f"| {key} | {escaped(value)} |" for key, value in rows.items())
    task = model.task
    noun = escaped(task.channel_noun)
    channels = f"one {noun}" if len(model.modalities) == 1 else f"{noun}s"
    *others, last = [_region(region) for region in task.regions]
    regions = f"{', '.join(others)} and {last}" if others else last
    return (
        f"## What it is\n\nIt segments {escaped(task.title or task.name)} in {channels} "
        f"({escaped(', '.join(model.modalities))}) into {regions}.\n\n"
        f"| | |\n|---|---|\n{table}"
    )


def _calibration(model: Model) -> str:
    found = model.calibration
    if found == calibration.NONE:
        return "none: its probabilities are what the training gave"
    biases = zip(model.outputs, found.biases, strict=False)
    listed = ", ".join(f"{name} {bias:+.2f}" for name, bias in biases)
    return f"on validation cases: logits / {found.temperature:.2f}, then {listed or 'no biases'}"


def _region(region: task_lib.Region) -> str:
    name = escaped(region.name)
    return f"{escaped(region.description)} ({name})" if region.description else name


def _labels(task: task_lib.Task) -> str:
    if not labels.is_brats(task):
        return ", ".join(f"{value} {name}" for value, name in enumerate(task.classes))
    table = labels.LABEL_CONVENTIONS["brats2021"]
    values = ", ".join(
        f"{value} {task.classes[number]}" for value, number in table.items() if value
    )
    return f"BraTS 2021 ({values}), or as asked for"


def _training(document: typed.JsonView) -> str:
    data = document.get("training")
    if not data:
        made_by = escaped(document.get("made_by", "another tool"))
        return f"## Training\n\nTrained by {made_by}; its files say no more than `model.json`."
    lines = [f"{data['cases']} training and {data['validation_cases']} validation cases"]
    if unlabelled := data.get("unlabelled_cases"):
        lines.append(f"and {unlabelled} training cases without a reference")
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


def _test(document: typed.JsonView) -> str:
    test = document.get("test")
    if not test:
        return "## Test\n\nNo test scores come with it: nothing is known here of how good it is."
    header = ["Region", *(heading for _, heading, _ in _METRICS), "Cases", "Reference empty"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    rows = list(test["regions"].items())
    for name, row in rows:
        cells = [_mean(row[key], digits) for key, _, digits in _METRICS]
        lines.append(
            f"| {escaped(name)} | {' | '.join(cells)} | {row['cases']:d} | {row['ref_empty']:d} |"
        )
    missed, masks = (sum(row[key] for _, row in rows) for key in ("missed", "cases"))
    cases_text = "synthetic cases" if document["training"]["synthetic"] else "cases"
    text = (
        f"Means over {test['cases']:d} held-out {cases_text}, each on its scan's own grid, with "
        "95 % intervals over the cases (of one training run: another seed may differ by more). "
        f"{missed:d} of {masks:d} region masks are empty where the reference is not. "
        f"HD95: {escaped(test['hd95'])}."
    )
    if teacher := test.get("teacher"):
        means = ", ".join(f"{escaped(name)} {teacher['dice'][name]:.3f}" for name, _ in rows)
        text += (
            f"\n\nIts teacher, on {escaped(', '.join(teacher['modalities']))}, has a mean Dice of "
            f"{means} on the same {teacher['cases']:d} cases."
        )
    if calibrated := test.get("calibration"):
        text += f"\n\n{_test_calibration(calibrated)}"
    return "## Test\n\n" + "\n".join(lines) + f"\n\n{text}"


def _test_calibration(regions: typed.JsonView) -> str:
    lines = [
        "| Region | Calibration error before | Calibration error after | Volume within its range |",
        "|---|---|---|---|",
    ]
    for name, row in regions.items():
        errors = (row[key] for key in ("ece_before", "ece_after"))
        shown = ["-" if error is None else f"{error:.3f}" for error in errors]
        held = f"{row['covered']:d} of {row['ranged']:d} cases" if row["ranged"] else "-"
        lines.append(f"| {escaped(name)} | {' | '.join(shown)} | {held} |")
    return (
        "\n".join(lines)
        + "\n\nExpected calibration error: the mean distance between a probability of the region "
        "and how often it is right, before and after calibration, over the voxels of these cases "
        "that get at least 0.05; 0 is best. The range is the one that `predict` prints, to hold "
        "the true volume in 95 of 100 scans."
    )


def _mean(found: Mapping[str, float | None], digits: int) -> str:
    mean, low, high = (found[key] for key in ("mean", "low", "high"))
    if mean is None:
        return "-"
    if low is None or high is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _limits(model: Model, document: typed.JsonView) -> str:
    points = [
        "For research on segmentation: comparing methods, and pre-segmentation that an expert "
        "corrects voxel by voxel.",
        "Untested: other diseases, children, scans after surgery, other scanners and protocols "
        f"than those of the training{_skull(model.task)}.",
        "A scan that looks unlike the training's gets a warning from `predict` and `segment`; no "
        "warning is no proof.",
        _empty(model.task),
    ]
    if len(model.modalities) == 1:
        points.insert(
            2,
            f"It sees {escaped(model.modalities[0])} alone: what that "
            f"{model.task.channel_noun.split()[-1]} does not show, it guesses from "
            f"{_looks(model.task)} in training.",
        )
    if document.get("training", {}).get("synthetic"):
        points.insert(0, "Trained on synthetic images: a demonstration, of no use on patients.")
    return "## Intended use and limits\n\n" + "\n".join(f"- {point}" for point in points)


def _skull(task: task_lib.Task) -> str:
    # Only where the background of a scan is 0 a skull may be missing.
    stripped = any(channel.normalisation == "zscore_nonzero" for channel in task.channels)
    return ", and heads that are not skull-stripped" if stripped else ""


def _empty(task: task_lib.Task) -> str:
    if task.noun == _ANY_NOUN:
        return "A scan without any of these regions may get a mask, and one with them may get none."
    noun = escaped(task.noun)
    article = "an" if noun[:1].lower() in "aeiou" else "a"
    return f"A scan without {article} {noun} may get a mask, and {article} {noun} may get none."


def _looks(task: task_lib.Task) -> str:
    return "what it saw" if task.noun == _ANY_NOUN else f"what {escaped(task.noun)}s looked like"


def _use(model: Model, files: Mapping[str, str], on_hub: bool) -> str:
    one = len(model.modalities) == 1
    ending = model.task.file_ending
    scan = (
        f'"scan{ending}"'
        if one
        else "{" + ", ".join(f'"{name}": "{name}{ending}"' for name in model.modalities) + "}"
    )
    listed = "\n".join(f"| `{name}` | {what} |" for name, what in files.items())
    first, folder = "import kdnet_jax\n", '"DIR"'
    if on_hub:
        first = f"import huggingface_hub\n{first}\n# OWNER/NAME: as this page is called.\n"
        first += 'folder = huggingface_hub.snapshot_download("OWNER/NAME")'
        folder = "folder"
    return f"""## Use

```python
{first}
found = kdnet_jax.load({folder}).segment({scan})
found.save("mask.nii.gz")
print(found.volumes_ml, found.warnings)
```

or `python -m kdnet_jax.predict --checkpoint=DIR --input=... --output=mask.nii.gz`.

| file | what it is |
|---|---|
{listed}"""


def _origin(document: typed.JsonView) -> str:
    licence = escaped(document.get("licence") or "not stated: ask who gave you this model")
    made = {"parameters SHA-256": document["parameters_sha256"], **document.get("provenance", {})}
    return f"""## Licence and origin

Licence of the parameters: {licence}. The code of kdnet\\_jax is under Apache-2.0.

```json
{json.dumps(made, indent=1)}
```

Cite Hu, Maillard et al., "Knowledge distillation from multi-modal to mono-modal segmentation
networks", MICCAI 2020, and kdnet\\_jax."""

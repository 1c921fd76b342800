"""The model card as `README.md` of a model repository of the Hugging Face Hub.

It starts with the metadata by which the Hub lists a model, in YAML:
https://huggingface.co/docs/hub/model-cards and https://huggingface.co/docs/hub/repositories-licenses.
"""

import re
from collections.abc import Mapping
from typing import Final

import yaml

from kdnet_jax.core import typed
from kdnet_jax.data.sources import names
from kdnet_jax.interop.export import model_card
from kdnet_jax.runs.model import Model

README: Final = "README.md"
_TASK: Final = "image-segmentation"
# The Hub's identifiers of licences that are not of one vendor or one model.
_LICENCES: Final = frozenset(
    (
        *("afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigscience-openrail-m"),
        *("bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda"),
        *("cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0"),
        *("cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
        *("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0"),
        *("cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0"),
        *("cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m", "ecl-2.0"),
        *("epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "gfdl", "gpl", "gpl-2.0"),
        *("gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lppl-1.3c", "mit", "mpl-2.0"),
        *("ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openrail", "openrail++", "osl-3.0"),
        *("pddl", "postgresql", "unlicense", "wtfpl", "zlib"),
    )
)


def readme(name: str, model: Model, document: typed.JsonView, files: Mapping[str, str]) -> str:
    """Returns the card with the Hub's metadata; the arguments are those of `model_card.render`."""
    found = _licence(document.get("licence") or "") | {
        "library_name": "kdnet_jax",
        "pipeline_tag": _TASK,
        "tags": _tags(model),
    }
    if results := _results(model, document):
        found["model-index"] = [{"name": name, "results": [results]}]
    text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n\n{model_card.render(name, model, document, files, on_hub=True)}"


def _licence(text: str) -> typed.Json:
    """Returns the Hub's identifier of a licence, or `other` with an identifier made of its name."""
    name = re.sub(r"[^a-z0-9.+]+", "-", text.lower()).strip("-")
    if not text.strip():
        return {"license": "unknown"}
    if name in _LICENCES:
        return {"license": name}
    return {"license": "other", "license_name": name or "unnamed"}


def _tags(model: Model) -> list[str]:
    channels = [model.task.channel(name) for name in model.modalities]
    found = ["medical-imaging", "segmentation", "jax"]
    if all(names.read(each.name).sequence for each in channels):
        found.append("mri")
    if all(each.normalisation == "ct" for each in channels):
        found.append("ct")
    if model.role == "student":
        found.append("knowledge-distillation")
    return list(dict.fromkeys([*found, *model.modalities]))


def _results(model: Model, document: typed.JsonView) -> typed.Json | None:
    """Returns the mean Dice of each region on the test cases; `None` where there is none."""
    regions = document.get("test", {}).get("regions", {})
    means = {name: row["dice"]["mean"] for name, row in regions.items()}
    metrics = [
        {"type": "dice", "name": f"Dice, {name}", "value": round(mean, 4)}
        for name, mean in means.items()
        if mean is not None
    ]
    if not metrics:
        return None
    data = document["training"]
    kind, source = ("synthetic",) * 2 if data["synthetic"] else ("local", data["source"])
    return {
        "task": {"type": _TASK, "name": model.task.title or model.task.name},
        # Of the type the Hub would make a link to the dataset of its own that has this name.
        "dataset": {"type": kind, "name": source or "unnamed", "split": "test"},
        "metrics": metrics,
    }

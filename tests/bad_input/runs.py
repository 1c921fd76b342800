"""Folders that are no run of this program, and runs whose files are malformed."""

import dataclasses
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from orbax.checkpoint import v1 as ocp


@dataclasses.dataclass(frozen=True)
class Run:
    """A malformed folder in place of a run.

    Attributes:
        name: what it is.
        build: makes it from the folder of a sound run that was copied there.
        says: what the message must name.
    """

    name: str
    build: Callable[[pathlib.Path], None]
    says: str


class _Trap:
    """Unpickling it makes a file: the proof that somebody unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("UNPICKLED",))


def trap() -> np.ndarray:
    """Returns an array that NumPy can only store as a pickle."""
    return np.array([_Trap()], dtype=object)


def _emptied(folder: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


def _torch_file(path: pathlib.Path) -> None:
    import pickle

    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": _Trap()}))
        archive.writestr("archive/version", "3")


def _file(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)
    _torch_file(folder)


def _torch(folder: pathlib.Path) -> None:
    _torch_file(_emptied(folder) / "checkpoints" / "model.pth")


def _nnunet(folder: pathlib.Path) -> None:
    _torch_file(_emptied(folder) / "fold_0" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps({"plans_name": "nnUNetPlans"}))
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}}))


def _monai(folder: pathlib.Path) -> None:
    _torch_file(_emptied(folder) / "models" / "model.pt")
    (folder / "configs").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps({"monai_version": "1.4.0"}))
    (folder / "configs" / "inference.json").write_text("{}")


def _saved_model(folder: pathlib.Path) -> None:
    (_emptied(folder) / "variables").mkdir()
    (folder / "saved_model.pb").write_bytes(b"\x08\x01")
    (folder / "variables" / "variables.index").write_bytes(bytes(64))


def _hugging_face(folder: pathlib.Path) -> None:
    _emptied(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 768}))
    (folder / "model.safetensors").write_bytes(bytes(64))


def _other_orbax(folder: pathlib.Path) -> None:
    _emptied(folder)
    ocp.save(folder / "5", {"weights": np.ones(3)})


def _other_network(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / "checkpoints")
    ocp.save(folder / "checkpoints" / "5", {"weights": np.ones(3)})


def _without_checkpoints(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / "checkpoints")


def _without_arrays(folder: pathlib.Path) -> None:
    for path in folder.glob("checkpoints/1/params/*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _circle(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)
    os.symlink(folder.name, folder)


def _config(name: str, text: str, says: str = "config.json") -> Run:
    def build(folder: pathlib.Path) -> None:
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(text)

    return Run(f"config.json {name}", build, says)


def _key(key: str, value: Any) -> Run:
    def build(folder: pathlib.Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        place = config
        *above, last = key.split(".")
        for part in above:
            place = place[part]
        if value is _ABSENT:
            del place[last]
        else:
            place[last] = value
        path.unlink()
        path.write_text(json.dumps(config))

    what = "missing" if value is _ABSENT else f"{value!r:.20}"
    return Run(f"config.json: {key} is {what}", build, key.rsplit(".", 1)[-1])


_ABSENT: Final = object()

# Of these, `compare` needs neither checkpoint nor network; it reads scores.
OTHER_PROGRAMS: Final = (
    Run("a file of PyTorch", _file, "run"),
    Run("PyTorch checkpoints", _torch, "run"),
    Run("results of nnU-Net", _nnunet, "run"),
    Run("MONAI bundle", _monai, "run"),
    Run("TensorFlow SavedModel", _saved_model, "config.json"),
    Run("Hugging Face model", _hugging_face, "config.json"),
    Run("Orbax checkpoint", _other_orbax, "config.json"),
    Run("empty folder", lambda folder: _emptied(folder) and None, "config.json"),
    Run("link in a circle", _circle, "run"),
    _config("is no JSON", "{'role': 'student'}"),
    _config("is empty", ""),
    _config("is binary", "\0\1\2"),
    _config("is a list", "[]"),
    _config("is null", "null"),
    _config("is too deep", '{"a":' * 50_000),
    _config("is of another program", '{"epochs": 3}'),
)
BAD_CHECKPOINTS: Final = (
    Run("another program's checkpoint beside our config", _other_network, "checkpoints"),
    Run("no checkpoint", _without_checkpoints, "checkpoint"),
    Run("checkpoint without its arrays", _without_arrays, "checkpoints"),
    _key("role", "princess"),
    _key("role", 7),
    _key("model", _ABSENT),
    _key("model.widths", "many"),
    _key("model.widths", [2, "4"]),
    _key("model.widths", [2, 10**9]),
    _key("model.widths", []),
    _key("model.blocks", float("nan")),
    _key("model.modalities", 3),
    _key("model.head", ["softmax"]),
    _key("model.bfloat16", {}),
    _key("inference.patch", [8, 8]),
    _key("inference.patch", [10**6] * 3),
    _key("inference.overlap", 1.5),
    _key("inference.mirror", "yes"),
    _key("data", []),
    _key("data.spacing", float("inf")),
    _key("data.spacing", "fine"),
    _key("optimizer.learning_rate", float("nan")),
    _key("optimizer.momentum", 1),
    _key("augment.rotation", 3),
    _key("augment.scale", "large"),
    _key("train.steps", None),
    _key("loader.patch", [0, 0, 0]),
)


# --- Scores ---------------------------------------------------------------------------------


def _scores(name: str, file: str, text: str | bytes | None, says: str = "") -> Run:
    def build(folder: pathlib.Path) -> None:
        path = folder / "evaluation" / file
        old = path.read_text()
        path.unlink()
        if text is not None:
            new = text.replace("<OLD>", old) if isinstance(text, str) else text
            path.write_bytes(new.encode() if isinstance(new, str) else new)

    return Run(f"{file} {name}", build, says or file)


def _cell(column: str, value: str) -> Run:
    def build(folder: pathlib.Path) -> None:
        path = folder / "evaluation" / "cases.csv"
        head, first, *rest = path.read_text().splitlines()
        cells = first.split(",")
        cells[head.split(",").index(column)] = value
        path.unlink()
        path.write_text("\n".join([head, ",".join(cells), *rest]) + "\n")

    return Run(f"cases.csv: {column} is {value!r}", build, "cases.csv")


def _cut(folder: pathlib.Path) -> None:
    path = folder / "evaluation" / "cases.csv"
    text = path.read_text()
    path.unlink()
    path.write_text(text[: len(text) // 2])


def _statistics(name: str, text: str) -> Run:
    def build(folder: pathlib.Path) -> None:
        (folder / "training_data.json").write_text(text)

    return Run(f"training_data.json {name}", build, "training_data.json")


# Only `predict` reads them.
BAD_STATISTICS: Final = (
    _statistics("is no JSON", "{"),
    _statistics("is a list", "[]"),
    _statistics("is too deep", "[" * 100_000),
    _statistics("is of another version", '{"version": 99}'),
    _statistics(
        "holds texts",
        '{"version": 1, "spacing_mm": "a", "extent_mm": 3, "brain_ml": {}, "sequences": []}',
    ),
)

BAD_SCORES: Final = (
    Run("cases.csv cut off", _cut, "cases.csv"),
    _scores("is missing", "cases.csv", None),
    _scores("is empty", "cases.csv", ""),
    _scores("is binary", "cases.csv", bytes(range(256))),
    _scores("has NULs", "cases.csv", b"case,region\0\n\0"),
    _scores("of another tool", "cases.csv", "subject;dice\n1;0,9\n"),
    _scores("holds a row twice", "cases.csv", "<OLD><OLD>"),
    _cell("dice", "good"),
    _cell("dice", "7"),
    _cell("volume_ref_mm3", "nan"),
    _cell("hd95_mm", "-3"),
    _cell("hd95_mm", "inf"),
    _cell("volume_ref_mm3", "-inf"),
    _cell("region", "tumour"),
    _cell("ref_empty", "perhaps"),
    _cell("lesions_ref", "1.5"),
    _cell("lesions_ref", "-1"),
    _cell("case", ""),
    _scores("is missing", "summary.json", None),
    _scores("is no JSON", "summary.json", "{"),
    _scores("is a list", "summary.json", "[1]"),
    _scores("has a teacher of another type", "summary.json", '{"teacher": "somebody"}'),
    _scores("has a hash of another type", "summary.json", '{"params_hash": {}}'),
)

# --- Splits ---------------------------------------------------------------------------------

SPLITS: Final = {
    "split is no JSON": "{",
    "split is empty": "",
    "split is a list": "[]",
    "split is too deep": "[" * 100_000,
    "split of numbers": json.dumps({"train": [1], "validation": [2], "test": [3]}),
    "split without test": json.dumps({"train": ["a"], "validation": ["b"]}),
    "split with another key": json.dumps({"train": [], "validation": [], "test": [], "x": 1}),
    "split with a wrong hash": json.dumps(
        {"train": ["a"], "validation": ["b"], "test": ["c"], "hash": "0"}
    ),
    "split with a hash of another type": json.dumps(
        {"train": ["a"], "validation": ["b"], "test": ["c"], "hash": []}
    ),
    "split of other cases": json.dumps({"train": ["<script>"], "validation": ["b"], "test": ["c"]}),
}

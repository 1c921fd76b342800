"""Configs of a MONAI bundle, read as plain values: no code in them is ever run."""

import ast
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Final

from kdnet_jax.core import documents, typed
from kdnet_jax.errors import UserError

# "@network_def", "$@network_def": the value of a key; "::" or "#" leads into it.
_REFERENCE: Final = re.compile(r"\$?@([\w:#]+)")
_TARGET: Final = "_target_"
_DISABLED: Final = "_disabled_"
# Of an object, but not of what it is.
_REMARKS: Final = ("_requires_", "_desc_", "_mode_")
_DEPTH: Final = 20  # of references and of transforms in transforms


class Config:
    """The files of a bundle's configs, each a JSON object."""

    def __init__(self, folder: pathlib.Path) -> None:
        # Inference first: training's transforms have random ones among them.
        paths = sorted(
            folder.glob("*.json"), key=lambda path: (path.stem != "inference", path.stem)
        )
        skipped = ("metadata", "datalist")
        self.files = {
            path: documents.read_object(path) for path in paths if not path.stem.startswith(skipped)
        }
        self._folder = folder

    def find(self, key: str) -> tuple[pathlib.Path, object]:
        """Returns the first file that has a key, and its value.

        Raises:
            UserError: it is missing.
        """
        for path, content in self.files.items():
            if key in content:
                return path, content[key]
        names = ", ".join(path.name for path in self.files) or "no .json file of a config"
        raise UserError(
            f"{self._folder}: no config has {key!r} (looked into {names}). Configs in YAML are not "
            "read: write them as JSON."
        )

    def resolve_object(self, path: pathlib.Path, given: typed.JsonView, where: str) -> typed.Json:
        """Returns an object with the references of its values replaced; see `resolve`."""
        return {
            key: self.resolve(path, each, f"{where}.{key}")
            for key, each in given.items()
            if key not in _REMARKS
        }

    def resolve(self, path: pathlib.Path, value: object, where: str, depth: int = 0) -> object:
        """Returns a value with its references replaced by what they name.

        Raises:
            UserError: it is an expression of Python, or refers to what is not there.
        """
        if isinstance(value, list):
            return [
                self.resolve(path, each, f"{where}[{i}]", depth) for i, each in enumerate(value)
            ]
        if isinstance(value, Mapping):
            return {
                key: self.resolve(path, each, f"{where}.{key}", depth)
                for key, each in value.items()
                if key not in _REMARKS
            }
        if not isinstance(value, str) or value[:1] not in ("$", "@", "%"):
            return value
        match = _REFERENCE.fullmatch(value)
        if match and depth < _DEPTH:
            found = self._follow(path, match[1], where)
            return self.resolve(path, found, where, depth + 1)
        return _literal(value, where)

    def _follow(self, path: pathlib.Path, reference: str, where: str) -> object:
        found: object = self.files[path]
        for part in re.split("::|#", reference):
            if isinstance(found, Mapping) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            else:
                raise UserError(f"{where} is '@{reference}', which {path.name} does not have.")
        return found

    def objects(self, *targets: str) -> Iterator[tuple[pathlib.Path, typed.Json]]:
        """Yields the objects of all files that make one of these classes, inference's first.

        Those that are off ("_disabled_") are left out, and what is in them.

        Raises:
            UserError: it is not said whether an object is off.
        """
        for path, content in self.files.items():
            for each in _objects(content, path):
                if class_name(each) in targets:
                    yield path, each

    def transforms(self) -> tuple[pathlib.Path, list[typed.Json]]:
        """Returns the transforms before the network, of the first file that lists them.

        Raises:
            UserError: no file does.
        """
        for path, content in self.files.items():
            for key in ("preprocessing", "preprocessing_transforms"):
                for found in _values(content, key):
                    if isinstance(found, str) and found.startswith("@"):
                        found = self.resolve(path, found, f"{path}: {key}")
                    chain = found.get("transforms") if isinstance(found, Mapping) else found
                    if isinstance(chain, str) and chain.startswith("@"):
                        chain = self.resolve(path, chain, f"{path}: {key}.transforms")
                    if isinstance(chain, list) and all(isinstance(e, Mapping) for e in chain):
                        return path, [dict(each) for each in chain]
        raise UserError(
            f"{self._folder}: no config lists the transforms before the network (preprocessing), "
            "so its normalisation is unknown."
        )


def class_name(definition: typed.JsonView) -> str:
    """Returns the last part of an object's "_target_", "" without one."""
    return str(definition.get(_TARGET, "")).rpartition(".")[2]


def arguments(definition: typed.JsonView) -> typed.Json:
    """Returns what an object passes to its class."""
    return {key: value for key, value in definition.items() if not re.fullmatch(r"_\w+_", key)}


def is_off(definition: typed.JsonView, where: object) -> bool:
    """Returns whether an object is switched off ("_disabled_"), as MONAI then leaves it out.

    Raises:
        UserError: an expression says so, or nothing that can be understood.
    """
    off = definition.get(_DISABLED, False)
    if str(off).lower() not in ("true", "false"):
        raise UserError(
            f"{where}: {class_name(definition)} has {_DISABLED} {off!r}; expected true or false. "
            "Write the one that holds into a copy of the file."
        )
    return str(off).lower() == "true"


def _literal(value: str, where: str) -> object:
    """Returns the value of "$None" or "$(1, 2)"; `ast` reads it and runs nothing."""
    try:
        return ast.literal_eval(value[1:].strip() if value[0] == "$" else value)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{where} is {value!r}, an expression. No code of a bundle is run here: write its "
            "value in a copy of the file."
        ) from error


def _objects(value: object, path: pathlib.Path, depth: int = 0) -> Iterator[typed.Json]:
    if depth > _DEPTH:
        return
    if isinstance(value, dict):
        if _TARGET in value:
            if is_off(value, path):
                return
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _objects(each, path, depth + 1)


def _values(value: object, key: str, depth: int = 0) -> Iterator[object]:
    """Yields the values of a key, outermost first."""
    if isinstance(value, dict) and depth <= _DEPTH:
        if key in value:
            yield value[key]
        for each in value.values():
            yield from _values(each, key, depth + 1)

"""The config's part of docs/reference.md: every key with what it may be, its defaults and its use.

What a key is for is told by the comments of configs/common.py and by the docstrings of the classes
behind its sections; what it may be, by the checks that a run makes.
"""

import ast
import dataclasses
import inspect
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from flax import traverse_util
from ml_collections import config_dict

from configs import common
from docs import tables
from kdnet_jax import config_values, optimizers, settings, train
from kdnet_jax.data import augment
from kdnet_jax.errors import UserError
from kdnet_jax.losses import distillation
from kdnet_jax.models import unet

ROLES: Final = ("student", "baseline", "teacher", "study")
# Sections that are the fields of a class.
_CLASSES: Final = {
    "model": unet.UNetConfig,
    "optimizer": optimizers.OptimizerOptions,
    "distillation": distillation.DistillationOptions,
    "augment": augment.AugmentOptions,
    "train": train.TrainOptions,
}
# What the name of the config's file says.
_OF_THE_NAME: Final = ("role", "preset")
_REFUSAL: Final = re.compile(r"(?:choose one of|give|the sequences are) (.*?)\)?\.?$", re.DOTALL)

Key = tuple[str, ...]
# (role, preset) -> dotted key -> default.
Defaults = Mapping[tuple[str, str], Mapping[str, Any]]


def sections() -> Iterator[str]:
    """Yields the text of each section of a config."""
    defaults = {
        (role, preset): _flat(common.base_config(role, preset))
        for role in ROLES
        for preset in common.PRESETS
    }
    keys = list(dict.fromkeys(key for flat in defaults.values() for key in flat))
    keys = [key for key in keys if key not in _OF_THE_NAME]
    use = _docstrings() | _comments()
    for section in sorted({_section(key) for key in keys}):
        rows = [
            (f"`{key}`", _allowed(key), _default(key, defaults), use.get(key, ""))
            for key in keys
            if _section(key) == section
        ]
        intro = f"{use[section]}\n\n" if section in use else ""
        table = tables.table(("key", "may be", "default", ""), rows)
        yield f"\n### {section or 'The run'}\n\n{intro}{table}"


def _flat(config: config_dict.ConfigDict) -> dict[str, Any]:
    return traverse_util.flatten_dict(config.to_dict(), sep=".")


def _section(key: str) -> str:
    return key.rpartition(".")[0]


# Defaults ---------------------------------------------------------------------------------------


def _default(key: str, defaults: Defaults) -> str:
    """Returns the default as it is written on a command line; several, where it depends."""
    name = key.removeprefix("augment.")
    if name != key and name != "preset":
        # A key that is not set has the value of augment.preset.
        return _by_preset({p: getattr(options, name) for p, options in augment.PRESETS.items()})
    by_role = {
        role: {p: defaults[role, p][key] for p in common.PRESETS if key in defaults[role, p]}
        for role in ROLES
    }
    by_role = {role: _by_preset(values) for role, values in by_role.items() if values}
    first = next(iter(by_role.values()))
    others = [f"{role}: {text}" for role, text in by_role.items() if text != first]
    return "; ".join([first, *others])


def _by_preset(values: Mapping[str, Any]) -> str:
    of_text: dict[str, list[str]] = {}
    for preset, value in values.items():
        of_text.setdefault(f"`{_written(value)}`", []).append(preset)
    if len(of_text) == 1:
        return next(iter(of_text))
    return ", ".join(f"{text} ({', '.join(presets)})" for text, presets in of_text.items())


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(_written, value)) or '""'
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


# What a key may be ------------------------------------------------------------------------------


def _allowed(key: str) -> str:
    """Returns what the checks of a run ask for, where the table of kinds leaves it open."""
    kind = config_values.KINDS.get(key)
    if kind and not isinstance(kind, config_values.Text):
        return kind.words
    role = next(role for role in ROLES if key in _flat(common.base_config(role, "smoke")))
    values = _flat(common.base_config(role, "smoke"))
    number = isinstance(values[key], float) or key.endswith("_probability")
    empty = ", or nothing" if values[key] == "" else ""
    values[key] = -1.0 if number else "?"
    config = config_dict.ConfigDict(traverse_util.unflatten_dict(values, sep="."))
    try:
        settings.read_settings(config)
    except UserError as error:
        if said := _REFUSAL.search(str(error)):
            return said.group(1) + empty
    return kind.words if kind else type(values[key]).__name__


# What a key is for ------------------------------------------------------------------------------


def _docstrings() -> dict[str, str]:
    """Returns dotted key -> what the "Attributes" of the section's class say of it."""
    use = {}
    for section, class_ in _CLASSES.items():
        attributes = inspect.getdoc(class_).partition("Attributes:\n")[2]
        for names, text in re.findall(r"^    (\w[\w, ]*): ((?:.|\n     )*)", attributes, re.M):
            use |= {f"{section}.{name}": _sentence(text) for name in names.split(", ")}
    # One line of the docstring speaks for all of them.
    every = use["augment.noise_probability"]
    names = (f"augment.{field.name}" for field in dataclasses.fields(augment.AugmentOptions))
    return {name: every for name in names if name.endswith("_probability")} | use


def _sentence(text: str) -> str:
    """Returns a text with a capital at its start."""
    return text[:1].upper() + text[1:]


def _comments() -> dict[str, str]:
    """Returns dotted key, or section, -> the comment above it in configs/common.py."""
    source = pathlib.Path(common.__file__).read_text("utf-8")
    lines = source.splitlines()
    use = {}
    for key, line in _lines_of_keys(ast.parse(source)):
        start = line - 1
        while lines[start - 1].strip().startswith("#"):
            start -= 1
        if comment := " ".join(text.strip(" #") for text in lines[start : line - 1]):
            use[".".join(key)] = comment
    return use


def _lines_of_keys(tree: ast.AST) -> Iterator[tuple[Key, int]]:
    """Yields every key that is written out, with its line: of functions, and `config.x = {}`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("_sections", "_augment"):
            above = () if node.name == "_sections" else ("augment",)
            yield from _of_value(above, node.body[-1].value)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            target = node.targets[0]
            if isinstance(target, ast.Attribute):
                yield (target.attr,), node.lineno
                yield from _of_value((target.attr,), node.value)


def _of_value(above: Key, value: ast.AST) -> Iterator[tuple[Key, int]]:
    """Yields the keys of a dictionary, `{...}` or the left side of `{...} | ...`."""
    value = value.left if isinstance(value, ast.BinOp) else value
    if not isinstance(value, ast.Dict):
        return
    for key, inner in zip(value.keys, value.values, strict=True):
        if key.lineno != value.lineno:  # else the comment is of the section that is one line
            yield (*above, key.value), key.lineno
        yield from _of_value((*above, key.value), inner)

"""Config section of docs/reference.md: of each key what it may be, its defaults and its use."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from configs import common
from docs import tables
from kdnet_jax.augment import augment
from kdnet_jax.config import flat_keys, keys

ROLES: Final = ("student", "baseline", "teacher", "study")
# The name of the config's file gives these.
_OF_THE_NAME: Final = ("role", "preset")

# (role, preset) -> dotted key -> default.
Defaults = Mapping[tuple[str, str], Mapping[str, Any]]


def sections() -> Iterator[str]:
    """Yields the text of each section of a config."""
    defaults = {
        (role, preset): flat_keys.flatten(common.base_config(role, preset).to_dict())
        for role in ROLES
        for preset in common.PRESETS
    }
    names = sorted(set(keys.KEYS) - set(_OF_THE_NAME))
    for section in sorted({_section(name) for name in names}):
        rows = [
            (f"`{name}`", key.kind.words, _default(name, defaults), key.help)
            for name, key in ((name, keys.KEYS[name]) for name in names)
            if _section(name) == section
        ]
        intro = f"{keys.SECTIONS[section]}\n\n" if section in keys.SECTIONS else ""
        table = tables.table(("key", "may be", "default", ""), rows)
        yield f"\n### {section or 'The run'}\n\n{intro}{table}"


def _section(name: str) -> str:
    return name.rpartition(".")[0]


def _default(name: str, defaults: Defaults) -> str:
    """Returns the default as it is written on a command line; several, where it depends."""
    if keys.KEYS[name].unset:
        field = name.removeprefix("augment.")
        return _by_preset({p: getattr(options, field) for p, options in augment.PRESETS.items()})
    by_role = {
        role: {p: defaults[role, p][name] for p in common.PRESETS if name in defaults[role, p]}
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

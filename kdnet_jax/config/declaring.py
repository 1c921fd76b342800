"""Declaration of a key, and of the keys of a section that is the options of a class."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping

from kdnet_jax.config import values


@dataclasses.dataclass(frozen=True)
class Key:
    """The declaration of a key.

    Attributes:
        default: its value where no preset changes it.
        kind: what it accepts.
        help: what it is for, one or two sentences.
        operational: it changes how fast a run goes or how often it reports, but not what it
            computes: a run may resume with another value.
        unset: a config leaves it open, and the value of `augment.preset` counts.
    """

    default: object
    kind: values.Kind
    help: str
    operational: bool = False
    unset: bool = False


def of_class(
    section: str,
    options: type,
    kinds: Mapping[str, values.Kind],
    operational: tuple[str, ...] = (),
    **defaults: object,
) -> dict[str, Key]:
    """Returns the keys of a section that is the options of a class.

    Args:
        section: its name.
        options: a dataclass whose docstring has "Attributes".
        kinds: of the fields whose annotation does not say what they accept.
        operational: names of fields.
        **defaults: of fields whose default no flag can express.
    """
    documented, hints = _attributes(options), typing.get_type_hints(options)
    keys = {}
    for field in dataclasses.fields(options):
        kind = kinds.get(field.name) or _kind(hints[field.name])
        if kind is not None:
            default = defaults.get(field.name, field.default)
            # The text of "noise_probability" serves for those that the docstring does not list.
            text = documented.get(field.name) or documented.get("noise_probability", "")
            keys[f"{section}.{field.name}"] = Key(default, kind, text, field.name in operational)
    return keys


def _kind(hint: object) -> values.Kind | None:
    if typing.get_origin(hint) is typing.Literal:
        return values.Choice(typing.get_args(hint))
    return values.Switch() if hint is bool else None


def _attributes(options: type) -> dict[str, str]:
    """Returns field -> what the "Attributes" of a class's docstring say of it."""
    text = (inspect.getdoc(options) or "").partition("Attributes:\n")[2]
    found = {}
    for names, use in re.findall(r"^    (\w[\w, ]*): ((?:.|\n     )*)", text, re.MULTILINE):
        sentence = " ".join(use.split())
        found |= dict.fromkeys(names.split(", "), sentence[:1].upper() + sentence[1:])
    return found

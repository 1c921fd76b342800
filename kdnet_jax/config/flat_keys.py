"""Flat configs: dotted key -> value, how they are checked, and in what two of them differ."""

import dataclasses
import hashlib
import json
from typing import Final

from kdnet_jax.augment import augment
from kdnet_jax.config import keys, values
from kdnet_jax.core import typed
from kdnet_jax.errors import UserError, first_few

# A config as config.json holds it: nested dictionaries.
Document = typed.JsonView
_SECTIONS: Final = {name.rpartition(".")[0] for name in keys.KEYS} - {""}


def check(flat: typed.JsonView) -> None:
    """Raises UserError for the first value that is of another kind than its key's.

    Args:
        flat: dotted key -> value. Keys that the table lacks are not looked at; see
            `check_complete`.
    """
    for name, value in flat.items():
        if name in _SECTIONS and value != {}:
            raise UserError(f"{name} is {value!r:.80}: it is a section, and has keys of its own.")
        if (above := name.rpartition(".")[0]) in keys.KEYS:
            raise UserError(f"{above} has keys of its own: give {keys.KEYS[above].kind.words}.")
        key = keys.KEYS.get(name)
        if key and not (key.unset and value is None):
            values.check(name, value, key.kind)


def check_complete(flat: typed.JsonView, role: str) -> None:
    """Raises UserError if keys of a role's config are missing, or unknown."""
    expected = keys.of_role(role)
    missing = [f"no {name}" for name in expected if name not in flat]
    unknown = [f"an unknown {name}" for name in flat if name not in expected]
    if found := missing + unknown:
        raise UserError(
            f"the config is not of this version of kdnet_jax: it has {first_few(found, 3)}. "
            "Use the version that wrote it, or train again."
        )


def flatten(document: typed.JsonView, prefix: str = "") -> typed.Json:
    """Returns dotted key -> value of a config's nested dictionaries."""
    found: typed.Json = {}
    for name, value in document.items():
        if isinstance(value, dict) and value:
            found |= flatten(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def nest(flat: typed.JsonView) -> typed.Json:
    """Returns the nested dictionaries of dotted keys."""
    document: typed.Json = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return document


def differences(ours: Document, theirs: Document) -> list[tuple[str, object, object]]:
    """Returns (dotted key, ours, theirs) wherever two configs differ."""
    left, right = explicit(ours), explicit(theirs)
    return [
        (key, left.get(key), right.get(key))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def changes(ours: Document, theirs: Document) -> list[tuple[str, object, object]]:
    """Returns the `differences` in what is computed."""
    return [each for each in differences(ours, theirs) if each[0] not in keys.OPERATIONAL]


def explicit(document: Document) -> typed.Json:
    """Returns dotted key -> value, with what is drawn as augmentation for `augment.preset`."""
    # What is drawn counts, not whether a preset or a key of its own says so.
    chosen = augment.choose(**document.get("augment", {}))
    # What the options know of the scans are no keys.
    drawn = {
        name: value
        for name, value in dataclasses.asdict(chosen).items()
        if f"augment.{name}" in keys.KEYS
    }
    return flatten({**document, "augment": drawn})


def hash_of(document: Document) -> str:
    """Returns a SHA-256 of all that changes what a run computes."""
    flat = explicit(document)
    computed = {key: value for key, value in flat.items() if key not in keys.OPERATIONAL}
    return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()

"""Data: from folders of scans to batches of patches."""

import importlib
import types

# What scripts import from here.
_HOMES = {
    "cases": "sources",
    "label_recognition": "sources",
    "labels": "sources",
    "geometry": "scans",
    "nifti": "scans",
    "prepare": "scans",
}


def __getattr__(name: str) -> types.ModuleType:
    if name in _HOMES:
        return importlib.import_module(f"{__name__}.{_HOMES[name]}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Parses command lines as the commands do, without running them.

    python -m tests.docs.parse_commands [[module, word, ...], ...].json > [message or "", ...]

A process of its own: the flags of the commands have the same names.
"""

import copy
import functools
import importlib
import json
import pathlib
import sys

from absl import flags
from ml_collections import config_dict, config_flags

from docs import make_reference
from kdnet_jax import task as task_lib
from kdnet_jax.config import students, study
from kdnet_jax.errors import UserError

# Modules whose further words are files.
_WITH_WORDS = ("kdnet_jax.predict",)
# What some benchmarks need, and not every environment has.
_PEERS = ("dynamic_network_architectures", "monai", "nbclient", "onnxruntime", "torch")
# What the documents write for a number.
_NUMBERS = ("N", "K")


@functools.cache
def _flags(module: str) -> tuple[flags.Flag, ...]:
    imported = importlib.import_module(module)
    # Where worker processes import the module, its flags are not defined at import.
    getattr(imported, "define_flags", lambda: None)()
    return tuple(make_reference.take_flags(imported))


def _parse(module: str, *words: str) -> None:
    values = flags.FlagValues()
    argv = [module, *map(_with_number, words)]
    for flag in _flags(module):
        if flag.name == "config":
            config_flags.DEFINE_config_file(
                "config", "configs/student.py", flag_values=values, sys_argv=argv
            )
        else:
            values[flag.name] = copy.deepcopy(flag)
    rest = values(argv)[1:] if words else []
    if rest and module not in _WITH_WORDS:
        raise UserError(f"{rest[0]!r} belongs to no flag")
    if words and "config" in values:
        _check(values["config"].value)


def _check(config: config_dict.ConfigDict) -> None:
    if config.task != task_lib.GLIOMA_NAME:
        return  # The documents' other tasks are not here; tests/docs/test_tasks.py runs them.
    if config.role == "study":
        study.parts(config, pathlib.Path("runs"))
    else:
        students.read(config, pathlib.Path("runs"))


def _with_number(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name}=1" if equals and value in _NUMBERS else word


def _message(words: list[str]) -> str:
    try:
        _parse(*words)
    except ModuleNotFoundError as error:
        return "" if error.name in _PEERS else str(error)
    except (flags.Error, UserError, AttributeError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    lines = json.loads(pathlib.Path(sys.argv[1]).read_text("utf-8"))
    print(json.dumps([_message(words) for words in lines]))

"""Writes docs/reference.md from the code: python -m docs.make_reference [FILE]."""

import importlib
import pathlib
import re
import sys
import tomllib
import types
from typing import Final

from absl import flags

from configs import common
from docs import config_reference, tables
from kdnet_jax.core import files

ROOT: Final = pathlib.Path(__file__).parents[1]
_HEAD: Final = """# Reference

Made from the code by `python -m docs.make_reference`; a test compares the two.
"""
_COMMANDS: Final = """
## Commands

Each is run as `python -m kdnet_jax.NAME`, or, where the package is installed, as the program
`kdnet_jax.NAME`; the same words follow. `--help` lists the flags.

Exit codes: 0 done; 2 a mistake in flags, settings or files, reported in one message; 130 and 143
stopped by ^C and SIGTERM; `check_data` has 1 for data that must be fixed, `main` 134 where another
process of the same run was lost.
"""
_CONFIG: Final = """
## Config

`--config=configs/ROLE.py[:PRESET]`. Roles: {roles}. Presets: {presets}; without
one, the first. The files of `configs/methods/` are students, and `configs/pretrain.py` is a
baseline that reconstructs: give each a `--workdir` of its own. Where there is no such file, the
one installed with the package is taken.

`--config.SECTION.KEY=VALUE` sets a key; several values are written with commas. A default that
depends on the preset is given for each, and so is one that depends on the role: that of the student
first. A limit far beyond use catches a typing error.
"""
_TAKES: Final = {
    "bool": "true or false",
    "comma separated list of strings": "texts with commas",
    "multi string": "a text, repeatable",
    "string": "a text",
}


def render() -> str:
    """Returns the whole page. It imports every command, whose flags have the same names: call once.

    The programs of pyproject.toml are the commands.
    """
    programs = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    config = _CONFIG.format(
        roles=tables.code(config_reference.ROLES), presets=tables.code(common.PRESETS)
    )
    commands = map(_command, sorted(programs))
    return "".join([_HEAD, _COMMANDS, *commands, config, *config_reference.sections()])


def _command(name: str) -> str:
    module = importlib.import_module(name)
    rows = [_row(flag) for flag in take_flags(module)]
    table = tables.table(("flag", "takes", "default", ""), rows)
    return f"\n### {name}\n\n{module.__doc__.strip()}\n\n{table}"


def take_flags(module: types.ModuleType) -> list[flags.Flag]:
    """Returns the flags of a command's module; the next command may define the same names."""
    taken = flags.FLAGS.get_key_flags_for_module(module)
    for flag in taken:
        delattr(flags.FLAGS, flag.name)
    return taken


def _row(flag: flags.Flag) -> tuple[str, str, str, str]:
    required = any("other than None" in validator.message for validator in flag.validators)
    default = "" if flag.default in (None, [], "") else f"`{flag.default_as_str.strip(chr(39))}`"
    # absl adds the choices before the help, and the way of repetition behind it.
    use = re.sub(r"^<[^>]*>: |; repeat this option to specify.*$", "", flag.help)
    return f"`--{flag.name}`", _takes(flag), "must be given" if required else default, use


def _takes(flag: flags.Flag) -> str:
    if values := getattr(flag.parser, "enum_values", None):
        return tables.code(values)
    if flag.flag_type() in _TAKES:
        return _TAKES[flag.flag_type()]
    return flag.parser.syntactic_help or "a file, perhaps with a preset"


if __name__ == "__main__":
    files.write_text(sys.argv[1] if sys.argv[1:] else ROOT / "docs" / "reference.md", render())

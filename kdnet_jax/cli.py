"""What the commands share: flags that fail with one plain message, and the compilation cache."""

import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import flags, logging
from ml_collections import config_flags

from kdnet_jax import errors
from kdnet_jax.core import console, home, process

# Before NumPy is imported, which no import above does.
process.use_one_blas_thread()

_CONFIG_KEY = re.compile(r"--?(config[\w.]*)")
# The configs that come with the package: beside it in a checkout and where it is installed.
_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# What reading a file of Python, or setting a key that is not there, may raise.
_CONFIG_ERRORS = (
    *(AttributeError, ImportError, KeyError, NameError, SyntaxError, TypeError, ValueError),
)

# --help shows --config among the flags of the command that defines it.
flags.disclaim_key_flags()


def define_config(default: str, help_text: str) -> flags.FlagHolder:
    """Defines --config and the --config.key of the file that it, or `default`, names.

    ml_collections reads the keys of the default file already here, so that a mistake in one of them
    is one message too.
    """
    try:
        return config_flags.DEFINE_config_file("config", _find_config(default), help_text)
    except _CONFIG_ERRORS as error:
        _refuse(_config_mistake(sys.argv, error))
    except OSError as error:
        _refuse(_unreadable_config(sys.argv, default, error))


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(errors.EXIT_USER_ERROR)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake in it is one message on standard error and exit 2."""
    console.show()
    # The libraries' own notes, warnings of Orbax's included; --verbosity=0 brings them back.
    logging.set_verbosity(logging.ERROR)
    try:
        rest = flags.FLAGS(_with_found_config(argv))
        if "config" in flags.FLAGS:
            # A config file that cannot be loaded is reported only when its value is read.
            _ = flags.FLAGS.config.role
            _tell_installed(config_flags.get_config_filename(flags.FLAGS["config"]))
        return rest
    except (flags.Error, errors.UserError) as error:
        message = _without_required(error) or str(error)
        unknown = isinstance(error, flags.UnrecognizedFlagError)
        if unknown and "config" in flags.FLAGS and (hint := _full_key(error.flagname)):
            message = f"--{error.flagname} is no flag{hint}"
    except _CONFIG_ERRORS as error:
        message = _config_mistake(argv, error)
    except OSError as error:
        message = _unreadable_config(argv, str(flags.FLAGS["config"].default), error)
    _refuse(message)


def _with_found_config(argv: list[str]) -> list[str]:
    """Returns the command line with its --config=FILE, or --config FILE, where the file lies."""
    found = list(argv)
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in ("--config", "-config") and equals:
            found[i] = f"{name}={_find_config(value)}"
        elif name in ("--config", "-config") and i + 1 < len(argv):
            found[i + 1] = _find_config(argv[i + 1])
    return found


def _find_config(config: str) -> str:
    """Returns configs/...FILE.py[:PRESET] as it is, or where it is installed if it is not here."""
    file, colon, preset = config.partition(":")
    path = pathlib.Path(file)
    installed = _CONFIGS.parent / path
    if path.parts[:1] != (_CONFIGS.name,) or path.exists() or not installed.exists():
        return config
    return f"{installed}{colon}{preset}"


def _tell_installed(config: str) -> None:
    file = pathlib.Path(config.partition(":")[0])
    if file.is_relative_to(_CONFIGS):
        here = file.relative_to(_CONFIGS.parent)
        print(f"note: {here} is not here; taking {file}, installed with kdnet_jax")


def _without_required(error: Exception) -> str | None:
    """Returns a message for flags that have to be given, `None` for another error."""
    names = re.findall(r"^flag --(\w+)=None: .*", str(error), re.MULTILINE)
    # Of a validator of several flags, which says it by `missing`.
    several = re.findall(r"^flags .*?: (--.*) (?:is|are) missing", str(error), re.MULTILINE)
    names += re.findall(r"--(\w+)", " ".join(several))
    return missing(names) if names else None


def missing(names: Sequence[str]) -> str:
    """Returns a message for flags that have to be given."""
    given = ", ".join(f"--{name}" for name in names)
    return f"{given} {'is' if len(names) == 1 else 'are'} missing; --help says what to give"


def _unreadable_config(argv: list[str], default: str, error: OSError) -> str:
    return (
        f"{_given_config(argv) or f'--config={default} (the default)'}: the config file cannot be "
        f"read ({str(error).strip().splitlines()[-1].strip()}). Give one such as "
        "--config=configs/student.py"
    )


def _given_config(argv: list[str]) -> str:
    """Returns the word that names the config file, or an empty text."""
    return next((arg for arg in argv if arg.lstrip("-").startswith("config=")), "")


def _config_mistake(argv: list[str], error: Exception) -> str:
    """Says which --config.key is unknown, from an error that names only the key's last part."""
    text = str(error).encode().decode("unicode_escape")
    quoted = re.search(r"'(\w+)'", text)
    suggested = re.search(r'Did you mean "(\w+)"', text)
    keys = [match.group(1) for arg in argv if (match := _CONFIG_KEY.match(arg))]
    wanted = [key for key in keys if quoted and quoted.group(1) in key.split(".")]
    if quoted is None or not wanted:
        return f"{_given_config(argv) or '--config'}: the config cannot be read: {text}"
    return f"--{wanted[0]}: {_unknown_key(wanted[0], quoted.group(1), suggested)}"


def _unknown_key(given: str, unknown: str, suggested: re.Match[str] | None) -> str:
    """Says what is wrong with config.KEY, of which the part `unknown` is not in the config."""
    if unknown in ("teacher", "distillation") and given.startswith(f"config.{unknown}"):
        return (
            f"the config has no key {unknown!r}: a baseline or teacher has no teacher. Use a "
            "student's, such as --config=configs/student.py"
        )
    hint = f"; did you mean {suggested.group(1)!r}?" if suggested else ""
    return f"the config has no key {unknown!r}{_full_key(given) or hint}"


def _full_key(name: str) -> str:
    """Returns a hint at the one key of a config that ends as `name` does; empty: not one."""
    from kdnet_jax.config import keys  # After a mistake: it takes a second.

    last = name.rpartition(".")[2]
    found = [key for key in keys.KEYS if key.rpartition(".")[2] == last]
    return f"; did you mean --config.{found[0]}?" if len(found) == 1 else ""


def refuse_arguments(argv: list[str]) -> None:
    """Refuses words that belong to no flag: mostly a value after a space too many."""
    if len(argv) > 1:
        print(
            f"error: {argv[1]!r} belongs to no flag. Write flags as --name=value.", file=sys.stderr
        )
        sys.exit(errors.EXIT_USER_ERROR)


def run(main: Callable[[list[str]], object]) -> None:
    """Runs a command whose mistakes are `UserError`s."""
    from absl import app

    def guarded(argv: list[str]) -> None:
        try:
            errors.exit_on_user_error(lambda: main(argv))
        except KeyboardInterrupt:
            exit_on_interrupt()

    app.run(guarded, flags_parser=parse_flags)


def exit_on_interrupt() -> None:
    """Ends a command after ^C; files are written beside and renamed, so none is half-written."""
    print("interrupted. What is finished is kept, and no file is half-written.", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the second start of a command is quick.

    JAX's own JAX_COMPILATION_CACHE_DIR is respected.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            folder = home.make_cache_folder()
        except OSError as error:
            print(
                f"note: compiled programs are not kept for the next start ({error}): set "
                "XDG_CACHE_HOME to a folder"
            )
            return
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))

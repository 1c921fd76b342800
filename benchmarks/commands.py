"""Whole commands beside an earlier commit of this project: python -m benchmarks.commands.

    python -m benchmarks.commands [--before=COMMIT] [--only=NAME,...] [--json=FILE]

What a user waits for is the command, not the network. Both commits are taken out of the checkout
into folders of their own, with caches of their own, and take turns on --cores cores; what is timed
is processor time, of all threads. The first round, which compiles, is left out.

- predict: a synthetic T1ce of 240 x 240 x 155 voxels of 1 mm by a network of the demo, with overlay
  and volumes.
- evaluate: masks of 256 x 256 x 36 voxels against references, all metrics, one worker on one core.
- demo: the README's first command, once, with nothing cached.
"""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from absl import flags

from benchmarks import command_sides, measuring, records
from kdnet_jax import cli
from kdnet_jax.core import files
from kdnet_jax.errors import check_choice

# The last commit before the work on speed outside of the training step.
_BEFORE = flags.DEFINE_string("before", "68aaf8f", "The earlier commit.")
_NOW = flags.DEFINE_string("now", "HEAD", "The later one.")
_ONLY = flags.DEFINE_list("only", ["predict", "evaluate"], "Rows: predict, evaluate, demo.")
_JSON = flags.DEFINE_string("json", None, "Also write the rows here.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Of each row but demo.", 1)
_CORES = flags.DEFINE_integer("cores", 2, "Cores of each side.", 1)


@contextlib.contextmanager
def _sides() -> Iterator[dict[str, command_sides.Side]]:
    with tempfile.TemporaryDirectory(prefix="kdnet_jax_commands_") as folder:
        chosen = {"now": _NOW.value, "before": _BEFORE.value}
        yield {
            name: command_sides.Side(commit, pathlib.Path(folder) / name)
            for name, commit in chosen.items()
        }


def measure(name: str, sides: dict[str, command_sides.Side]) -> records.Row:
    """Returns the row of a command."""
    prepare, goal, cores = command_sides.ROWS[name]
    commands = {key: prepare(side) for key, side in sides.items()}
    once = name == "demo"
    seconds: dict[str, list[float]] = {key: [] for key in sides}
    for side in sides.values():
        side.others.clear()
    for _ in range(1 if once else _REPETITIONS.value + 1):
        for key, side in sides.items():
            seconds[key].append(side.run(cores or _CORES.value, *commands[key]))
    first = 0 if once else 1
    return records.make_row(
        f"command_{name}",
        "s of processor time",
        goal,
        seconds["now"][first:],
        seconds["before"][first:],
        peer_name=f"commit {_BEFORE.value}",
        others=[each for side in sides.values() for each in side.others],
    )


def main(argv: list[str]) -> None:
    """Checks, measures, prints, writes."""
    cli.refuse_arguments(argv)
    for name in _ONLY.value:
        check_choice("--only", name, list(command_sides.ROWS))
    measuring.check_machine(_CORES.value)
    records.check_writable(_JSON.value, "--json")
    about = records.facts()
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    rows = []
    for name in _ONLY.value:
        with _sides() as sides:
            rows.append(measure(name, sides))
        print(records.text(rows[-1]), flush=True)
        if _JSON.value:
            files.write_text(_JSON.value, records.to_json(rows, about))


if __name__ == "__main__":
    cli.run(main)

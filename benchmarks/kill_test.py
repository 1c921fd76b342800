"""Kills a run again and again, and compares its end with that of a run that was never stopped.

    python -m benchmarks.kill_test --kills=40 --json=docs/results/kill_test.json

Both are `python -m kdnet_jax.main --config=configs/student.py:smoke` with more steps, each start a
process of its own. SIGKILL comes at random moments and at chosen ones: within a step, a save, the
first save, a validation, an evaluation. At the end the parameters of teacher and student, the best
and the newest, must be equal to the bit, and so must the rows of `metrics.jsonl` (without the times
of a step), the scores and the masks. Exits with 1 where they are not.
"""

import json
import pathlib
import sys
import tempfile

from absl import flags

from benchmarks import kills
from kdnet_jax import cli
from kdnet_jax.core import files

_KILLS = flags.DEFINE_integer("kills", 40, "How many", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments")
_JSON = flags.DEFINE_string("json", None, "Where the counts go")


def main(argv: list[str]) -> None:
    """Runs the test, prints and writes the counts."""
    cli.refuse_arguments(argv)
    with tempfile.TemporaryDirectory(prefix="kdnet_kill_test_") as folder:
        record = kills.run(pathlib.Path(folder), _KILLS.value, _SEED.value)
    print(json.dumps(record, indent=1))
    if _JSON.value:
        files.write_text(_JSON.value, json.dumps(record, indent=1) + "\n")
    if record["differences"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)

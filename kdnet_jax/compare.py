"""Does the student beat the baseline? Compares runs, several (seeds, folds) a side.

    python -m kdnet_jax.compare --baseline=RUN... --student=RUN... [--teacher=RUN...] --output=DIR

Each side takes folders of runs or outputs of `kdnet_jax.evaluate`: flags repeated, commas, or
patterns such as "runs/seed-*/baseline". `docs/statistics.md` explains the numbers.
"""

import glob
import pathlib
from collections.abc import Sequence

from absl import flags

from kdnet_jax import cli
from kdnet_jax.errors import UserError, nearest

_SIDE = "Folders of {}: repeated, with commas, or a pattern such as runs/seed-*/{}"
_BASELINE = flags.DEFINE_multi_string(
    "baseline", None, _SIDE.format("baselines", "baseline"), required=True
)
_STUDENT = flags.DEFINE_multi_string(
    "student", None, _SIDE.format("students", "student"), required=True
)
_TEACHER = flags.DEFINE_multi_string(
    "teacher", [], _SIDE.format("the students' teachers", "teacher")
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for tables and figures.", required=True)
_POSTPROCESSED = flags.DEFINE_bool("postprocessed", False, "Compare scores after post-processing.")
_FORCE = flags.DEFINE_bool("force", False, "Go on where runs are not comparable, and say so.")
_METRICS = flags.DEFINE_list("metric", None, "Metrics, with commas; by default all.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the bootstrap.", lower_bound=0)
_RESAMPLES = flags.DEFINE_integer(
    "resamples", 10_000, "Resamples of the bootstrap.", lower_bound=1000
)


def main(argv: list[str]) -> None:
    """Compares what the flags name."""
    # Imported here: a mistake in the flags is told before the seconds that this takes.
    from kdnet_jax import comparison
    from kdnet_jax.reporting import comparison_figures, comparison_text

    cli.refuse_arguments(argv)
    output = pathlib.Path(_OUTPUT.value)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output} is a file. Give a folder.")
    compared = comparison.compare(
        expand("baseline", _BASELINE.value),
        expand("student", _STUDENT.value),
        expand("teacher", _TEACHER.value),
        metrics=read_metrics(_METRICS.value, tuple(comparison.MEASURES)),
        postprocessed=_POSTPROCESSED.value,
        force=_FORCE.value,
        seed=_SEED.value,
        resamples=_RESAMPLES.value,
    )
    try:
        comparison_text.write(compared, output)
    except OSError as error:
        raise UserError(
            f"--output={output} cannot be written ({error.strerror}). Give another folder."
        ) from error
    comparison_figures.write(compared, output)
    if compared.differs:
        print("The runs are not comparable. They differ in:")
        print("".join(f"  - {line}\n" for line in compared.differs))
    print("\n\n".join(comparison_text.verdict(compared)))
    print(f"\nTables and figures: {output}")


def expand(side: str, given: Sequence[str]) -> list[pathlib.Path]:
    """Returns the folders that a side's flags name, patterns expanded, in a stable order.

    Raises:
        UserError: for a folder that is not there, or a pattern without a match.
    """
    folders = []
    for pattern in (word.strip() for text in given for word in text.split(",")):
        # A folder whose name holds the signs of a pattern is taken as it is.
        matches = [pattern] if pathlib.Path(pattern).exists() else glob.glob(pattern)
        matches = sorted(match for match in matches if pathlib.Path(match).is_dir())
        if not pattern or not matches:
            raise UserError(
                f"--{side}={pattern}: no such folder, and no folder matches it as a pattern. Give "
                "the folder of a finished run, or a pattern such as 'runs/seed-*/baseline'."
            )
        folders += map(pathlib.Path, matches)
    return folders


def read_metrics(given: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Returns the metrics to compare.

    Raises:
        UserError: for one that is not known, or named twice.
    """
    for name in given or ():
        if name not in known:
            raise UserError(
                f"--metric={name}{nearest(name, known)}: choose among {', '.join(known)}"
            )
    if given and len(set(given)) < len(given):
        raise UserError(f"--metric={','.join(given)}: name each metric once.")
    return list(given or known)


if __name__ == "__main__":
    cli.run(main)

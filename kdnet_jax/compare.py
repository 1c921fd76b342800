"""Does the student beat the baseline? Compares runs, several (seeds, folds) a side.

    python -m kdnet_jax.compare --baseline=RUN... --student=RUN... [--teacher=RUN...] --output=DIR

Each side takes folders of runs or outputs of `kdnet_jax.evaluate`: flags repeated, commas, or
patterns such as "runs/seed-*/baseline". `docs/statistics.md` explains the numbers.
"""

import pathlib

from absl import flags

from kdnet_jax import cli
from kdnet_jax.core import files
from kdnet_jax.errors import UserError
from kdnet_jax.runs import run_folders

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
_FORCE = flags.DEFINE_bool("force", False, "Continue where runs are not comparable, and say so.")
_METRICS = flags.DEFINE_list("metric", None, "Metrics, with commas; by default all.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the bootstrap.", lower_bound=0)
_RESAMPLES = flags.DEFINE_integer(
    "resamples", 10_000, "Resamples of the bootstrap.", lower_bound=1000
)


def main(argv: list[str]) -> None:
    """Compares what the flags name."""
    # Imported here: a mistake in the flags is reported before the seconds that this takes.
    from kdnet_jax.evaluation import comparison
    from kdnet_jax.reports import comparison_figures, comparison_text

    cli.refuse_arguments(argv)
    output = pathlib.Path(_OUTPUT.value)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output} is a file. Give a folder.")
    run_folders.refuse_run(output)
    files.check_places([output / comparison_text.EVERYTHING])
    compared = comparison.compare(
        run_folders.expand("baseline", _BASELINE.value),
        run_folders.expand("student", _STUDENT.value),
        run_folders.expand("teacher", _TEACHER.value),
        metrics=comparison.read_metrics(_METRICS.value),
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


if __name__ == "__main__":
    cli.run(main)

"""Reads every case of a folder and says what is there and what is wrong.

    python -m kdnet_jax.check_data --data_dir=DIR [--task=DATASET.json] [--release=auto]
        [--output=CASES.csv] [--problems=PROBLEMS.csv] [--figure=SHEET.png]

Exits with 0 if nothing has to be fixed (there may be warnings), with 1 if something has, and with 2
if the command cannot be run as it was given.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import Final

from absl import flags

from kdnet_jax import cli, dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.core import files
from kdnet_jax.data.checks import problems
from kdnet_jax.data.scans import geometry
from kdnet_jax.data.sources import cases, labels, layouts
from kdnet_jax.drawing import figures
from kdnet_jax.errors import UserError
from kdnet_jax.reports import data_summary, data_survey

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the scans.", required=True)
_RELEASE = flags.DEFINE_enum(
    "release",
    layouts.AUTO,
    [layouts.AUTO, *layouts.RELEASES],
    "Layout and labels; auto recognises them.",
)
_TASK = flags.DEFINE_string(
    "task", task_lib.DEFAULT.name, "What is segmented: glioma, or a dataset.json of nnU-Net."
)
_MODALITIES = flags.DEFINE_string(
    "modalities", None, "Sequences that every case must have; by default all of the task."
)
_ORIENTATION = flags.DEFINE_string(
    "orientation", geometry.HEADER, "Of the stored axes, such as LPS, where the headers are wrong."
)
_LABEL_CONVENTION = flags.DEFINE_enum(
    "label_convention",
    None,
    list(labels.LABEL_CONVENTIONS),
    "Meaning of the label values; by default that of the release.",
)
_ALLOW_SKULL = flags.DEFINE_bool("allow_skull", False, "Take scans that are not skull-stripped.")
_INCOMPLETE = flags.DEFINE_bool(
    "incomplete", False, "Cases that lack some sequences are no errors (data.incomplete)."
)
_OUTPUT = flags.DEFINE_string("output", None, "CSV file for a row per case.")
_PROBLEMS = flags.DEFINE_string("problems", None, "CSV file for a row per problem.")
_FIGURE = flags.DEFINE_string("figure", None, "PNG file for a contact sheet of the cases.")
_WORKERS = flags.DEFINE_integer(
    "workers", 2, "Cases read at once.", lower_bound=1, upper_bound=1024
)

EXIT_TO_FIX: Final = 1


def _check_outputs(paths: Mapping[str, str | None]) -> None:
    """Refuses, before an hour of reading, a file that cannot be written."""
    files.check_places(pathlib.Path(path) for path in paths.values() if path)
    for flag, path in paths.items():
        if path and flag == "--figure" and pathlib.Path(path).suffix.lower() != ".png":
            raise UserError(f"{flag}={path}: give a name that ends in .png")
        if path and not pathlib.Path(path).absolute().parent.is_dir():
            raise UserError(f"{flag}={path}: its folder does not exist; make it or name another")


def main(argv: list[str]) -> None:
    """Checks the data that the flags name."""
    cli.refuse_arguments(argv)
    geometry.check_orientation(_ORIENTATION.value)
    task = dataset_json.read(_TASK.value)
    _check_outputs(
        {"--output": _OUTPUT.value, "--problems": _PROBLEMS.value, "--figure": _FIGURE.value}
    )
    wanted = None
    if _MODALITIES.value is not None:
        wanted = task.read_modalities(_MODALITIES.value, "--modalities")
    cohort, rows = cases.survey_cases(
        _DATA_DIR.value,
        _RELEASE.value,
        wanted,
        label_convention=_LABEL_CONVENTION.value,
        task=task,
        incomplete=_INCOMPLETE.value,
    )
    reports, more = data_survey.check_cases(
        cohort.cases,
        _ORIENTATION.value,
        allow_skull=_ALLOW_SKULL.value,
        workers=_WORKERS.value,
        task=task,
    )
    rows += more
    reports = data_summary.with_problems(reports, rows)
    print(data_summary.summary(cohort, reports, rows, task))
    if _OUTPUT.value:
        data_survey.write_csv(*data_summary.table(reports, task), _OUTPUT.value, "--output")
    if _PROBLEMS.value:
        columns = [field.name for field in dataclasses.fields(problems.Problem)]
        data_survey.write_csv(
            columns, [dataclasses.astuple(row) for row in rows], _PROBLEMS.value, "--problems"
        )
    if _FIGURE.value and cohort.cases:
        title = f"{cohort.release}: {_DATA_DIR.value}"
        figure = data_survey.sheet(
            cohort.cases, rows, title, _ORIENTATION.value, _WORKERS.value, task=task
        )
        figures.save_png(figure, _FIGURE.value, dpi=100)
    if any(row.severity == problems.ERROR for row in rows):
        sys.exit(EXIT_TO_FIX)


if __name__ == "__main__":
    cli.run(main)

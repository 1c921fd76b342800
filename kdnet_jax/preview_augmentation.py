"""Shows what a config's augmentation does to one case.

    python -m kdnet_jax.preview_augmentation --config=configs/student.py:brats --output=FILE.png
        [--case=ID] [--config.data.data_dir=DIR] [--config.augment.KEY=VALUE]

A row for each part at strengths over its range, then patches as training draws them. Without
`--config.data.data_dir` the case is a synthetic one. docs/augmentation.md explains the parts.
"""

import pathlib
from typing import TYPE_CHECKING

from absl import flags

from kdnet_jax import cli
from kdnet_jax.core import files
from kdnet_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from kdnet_jax.config import experiment as experiment_lib
    from kdnet_jax.data.scans import prepare

_CONFIG = cli.define_config(
    "configs/student.py", "A role's file and a preset, such as configs/student.py:brats"
)
_OUTPUT = flags.DEFINE_string("output", None, "The picture: a .png file", required=True)
_CASE = flags.DEFINE_string("case", None, "Id of the case; by default the first of data.data_dir")


def main(argv: list[str]) -> None:
    """Draws the sheet that the flags ask for."""
    cli.refuse_arguments(argv)
    if pathlib.Path(_OUTPUT.value).suffix != ".png":
        raise UserError(f"--output={_OUTPUT.value}: give the name of a .png file")
    files.check_places([pathlib.Path(_OUTPUT.value)])
    # Imported here: a mistake in the flags is reported before the seconds that this takes.
    import jax

    from kdnet_jax.augment import augment
    from kdnet_jax.config import reading
    from kdnet_jax.core import devices
    from kdnet_jax.drawing import figures
    from kdnet_jax.reports import augmentation_sheet

    devices.check()
    experiment = reading.read(_CONFIG.value)
    task, patch = experiment.task, experiment.loader.patch
    sequence = figures.shown_sequence(experiment.modalities, task)
    case = _case(experiment, sequence)
    section = experiment.document["augment"]
    shown = augment.fitted(augment.choose(**section), task, (sequence,), experiment.data.spacing)
    scene = augmentation_sheet.make_scene(case, sequence, patch, shown, task=task)
    rows = augmentation_sheet.make_rows(scene, shown, jax.random.key(experiment.seed))
    size = " x ".join(map(str, patch))
    preset = section["preset"]
    title = f"{case.case_id}, {sequence}: a patch of {size} voxels\naugment.preset={preset}"
    figures.save_png(augmentation_sheet.draw(rows, title, task=task), _OUTPUT.value, dpi=100)
    print(_OUTPUT.value)


def _case(experiment: "experiment_lib.Experiment", sequence: str) -> "prepare.PreparedCase":
    """Prepares the case of which a sequence is shown, and only that."""
    from kdnet_jax import task as task_lib
    from kdnet_jax.data.phantom import phantom
    from kdnet_jax.data.scans import ct_statistics, prepare
    from kdnet_jax.data.sources import cases

    task, data = experiment.task, experiment.data
    if not data.data_dir:
        if task != task_lib.GLIOMA:
            raise UserError(
                f"data.data_dir is empty, and there are no synthetic cases of the task {task.name}."
                " Set --config.data.data_dir to the folder of its scans."
            )
        made = phantom.generate(data.phantom.seed, 0, data.phantom_spacing())
        return prepare.prepare_arrays(
            made.images,
            made.affine,
            made.labels,
            spacing=data.spacing,
            case_id=made.case_id,
            patient_id=made.case_id,
        )
    found = cases.find_cases(
        data.data_dir,
        data.release,
        data.modalities,
        label_convention=data.label_convention,
        task=task,
        incomplete=data.incomplete,
    ).cases
    by_id = {case.case_id: case for case in found if sequence in case.images}
    if (wanted := _CASE.value or next(iter(by_id))) not in by_id:
        raise UserError(
            f"--case={wanted}: {data.data_dir} has no such case{nearest(wanted, by_id)}"
        )
    prepared, notes = prepare.prepare_case(
        by_id[wanted],
        task=ct_statistics.measure(found, task, orientation=data.orientation),
        spacing=data.spacing,
        orientation=data.orientation,
        allow_skull=data.allow_skull,
    )
    for note in notes:
        print(f"note: {note}")
    return prepared


if __name__ == "__main__":
    cli.run(main)

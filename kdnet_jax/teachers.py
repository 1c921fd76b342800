"""Where a student's teacher lies, and whether it can teach this student on these cases."""

import pathlib

from ml_collections import config_dict

from kdnet_jax import run_data, runs, settings
from kdnet_jax.data import splits
from kdnet_jax.errors import UserError


def find_folder(config: config_dict.ConfigDict, workdir: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the teacher's run, to be trained or given; `None` without a teacher."""
    if config.role != "student":
        return None
    if not config.teacher.checkpoint:
        return workdir / "teacher"
    folder = pathlib.Path(config.teacher.checkpoint)
    settings.read_config(folder)  # a wrong folder is found before any data is read
    return folder


def check(teacher: runs.Run, values: settings.Settings, data: run_data.Data) -> None:
    """Raises UserError for a teacher that cannot teach this student on these cases."""
    theirs, where = teacher.settings, f"the teacher {teacher.folder}"
    absent = [name for name in theirs.modalities if name not in values.data_modalities]
    if absent:
        raise UserError(
            f"{where} needs {', '.join(absent)}, but data.modalities is "
            f"{','.join(values.data_modalities)}. Add it to --config.data.modalities."
        )
    if theirs.network.outputs != values.network.outputs:
        raise UserError(
            f"{where} predicts {', '.join(theirs.network.outputs)}, the student "
            f"{', '.join(values.network.outputs)}. Set --config.model.head={theirs.network.head}."
        )
    bottlenecks = (
        (len(theirs.network.widths), theirs.network.widths[-1]),
        (len(values.network.widths), values.network.widths[-1]),
    )
    if values.distillation.latent_weight and bottlenecks[0] != bottlenecks[1]:
        raise UserError(
            f"{where} has widths {theirs.network.widths}, the student {values.network.widths}: "
            "their bottlenecks cannot be compared. Give the student as many levels and the same "
            "last width, or set --config.distillation.latent_weight=0."
        )
    if theirs.spacing != values.spacing:
        raise UserError(
            f"{where} was trained at data.spacing {theirs.spacing}, the student is to be at "
            f"{values.spacing}. Set --config.data.spacing={theirs.spacing or 0}."
        )
    their_split = splits.load_split(teacher.folder / "split.json")
    leaked = {*their_split.train, *their_split.validation} & set(data.split.test)
    if leaked:
        raise UserError(
            f"{where} was trained or selected on {len(leaked)} of this run's test cases (such as "
            f"{min(leaked)}). Use its split: --config.split.file={teacher.folder / 'split.json'}"
        )

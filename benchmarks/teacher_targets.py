"""What a teacher tells its student: its masks and its softened output against the reference.

    python -m benchmarks.teacher_targets --checkpoint=RUN [--temperature=5]

prints, for the training, validation and test cases of a teacher's run, the Dice of its masks on the
working grid and the mean probability of tumour inside and outside of the whole tumour of the
reference, as it is and at the temperature.
"""

import pathlib

import numpy as np
from absl import flags
from jaxtyping import Float

from kdnet_jax import cli
from kdnet_jax import task as task_lib
from kdnet_jax.config import reading
from kdnet_jax.data import splits
from kdnet_jax.data.scans import prepare
from kdnet_jax.data.sources import labels
from kdnet_jax.errors import UserError
from kdnet_jax.experiment import run_data
from kdnet_jax.metrics import overlap
from kdnet_jax.prediction import ensembles
from kdnet_jax.runs import trained

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the teacher's run", required=True)
_TEMPERATURE = flags.DEFINE_float("temperature", 5.0, "T of the softened output", lower_bound=0.1)


def soften(probs: Float[np.ndarray, "d h w k"], temperature: float) -> Float[np.ndarray, "d h w k"]:
    """Returns softmax(z / T) from softmax(z): p^(1/T), normalised."""
    powers = probs ** (1 / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def main(argv: list[str]) -> None:
    """Prints a row per part of the split."""
    cli.refuse_arguments(argv)
    run = trained.load_run(pathlib.Path(_CHECKPOINT.value))
    if run.model.head.kind != "softmax":
        raise UserError(f"{run.folder}: its head is not softmax, so it has no temperature.")
    data = run_data.open_data(reading.read_run(run.folder))
    teacher = ensembles.of_run(run)
    print("| part | cases | Dice ET / TC / WT | tumour, in / out | the same at T, in / out |")
    print("|---|---|---|---|---|")
    for part in splits.PARTS:
        rows = np.mean([_row(teacher, data.cases[i], run) for i in data.indices(part)], axis=0)
        dice = " / ".join(f"{value:.2f}" for value in rows[:3])
        plain, soft = (f"{pair[0]:.3f} / {pair[1]:.3f}" for pair in (rows[3:5], rows[5:7]))
        print(f"| {part} | {len(data.indices(part))} | {dice} | {plain} | {soft} |")


def _row(teacher: ensembles.Ensemble, case: prepare.PreparedCase, run: trained.Run) -> list[float]:
    probs = teacher.segment(case).probabilities
    reference = labels.map_cavity(case.label, run.model.resection_cavity, task=run.model.task)
    found = run.model.head.decide(probs)
    inside = task_lib.GLIOMA.mask(reference, "WT")
    values = [
        overlap.dice(*(task_lib.GLIOMA.mask(each, region) for each in (reference, found)))
        for region in task_lib.GLIOMA.region_names
    ]
    for output in (probs, soften(probs, _TEMPERATURE.value)):
        tumour = output[..., 1:].sum(axis=-1)
        values += [float(tumour[inside].mean()), float(tumour[~inside].mean())]
    return values


if __name__ == "__main__":
    cli.run(main)

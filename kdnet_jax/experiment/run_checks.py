"""Whether the cases of a run are such that its network can learn from them."""

import logging
from collections.abc import Sequence

from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.errors import UserError, counted
from kdnet_jax.experiment import run_data
from kdnet_jax.losses import objective

_LOG = logging.getLogger(__name__)


def check_sequences(experiment: experiment_lib.Experiment, data: run_data.Data) -> None:
    """Reports how many training cases are left out because they lack the network's sequences.

    Raises:
        UserError: all of those with a reference.
    """
    used = run_data.training_cases(experiment, data)
    count = len(data.split.train) - len(used)
    if experiment.uses_unlabelled:
        count += len(data.split.unlabelled) - len(run_data.unlabelled_cases(experiment, data))
    seen, role = ", ".join(experiment.modalities), experiment.role
    if not used:
        raise UserError(
            f"none of the {len(data.split.train)} training cases with a reference has what the "
            f"{role} sees: {seen}. Choose other channels (--config.model.modalities; of a teacher "
            "that is trained first --config.teacher.modalities), or add cases that have them."
        )
    if count:
        _LOG.info(
            f"note: {count} training cases lack what the {role} sees ({seen}), and are left out of "
            "its training"
        )


def check_taught(experiment: experiment_lib.Experiment, data: run_data.Data) -> None:
    """Raises UserError if a student would learn nothing from its teacher."""
    options, unlabelled = experiment.distillation, run_data.unlabelled_cases(experiment, data)
    if options is None or options.teaches_beside_references:
        return
    if unlabelled and options.unlabelled_weight:
        return
    if unlabelled:
        why = f"distillation.unlabelled_weight is 0 on the {len(unlabelled)} without"
        remedy = "Set --config.distillation.unlabelled_weight"
    else:
        count = len(data.split.train)
        why = f"all {count} training cases have one, or loader.unlabelled_share is 0"
        remedy = (
            "Add cases without a label file, use the labels of N cases alone "
            "(--config.split.labelled=N)"
        )
    raise UserError(
        "the student would learn nothing from its teacher: all weights of distillation are 0 on "
        f"cases with a reference, and {why}. {remedy}, or set --config.distillation.kd_weight."
    )


def check_unlabelled(experiment: experiment_lib.Experiment, data: run_data.Data) -> None:
    """Raises UserError if there are scans without a reference, and the loss cannot take them."""
    options, count = experiment.distillation, len(run_data.unlabelled_cases(experiment, data))
    if options is None or not count:
        return
    hard = options.unlabelled == "hard"
    if options.mixup and (hard or objective.reads_references(options)):
        raise UserError(
            f"distillation.mixup is {options.mixup:g}, and {counted(count, 'training case')} "
            "without a reference: a sample that is mixed with one of these has none either, which "
            "leaves hardly any to learn references from. Leave these cases out "
            "(--config.loader.unlabelled_share=0), mix nothing (--config.distillation.mixup=0), or "
            "learn from the teacher's probabilities alone, as configs/methods/patient.py does."
        )
    if experiment.loss.over_batch and not hard:
        raise UserError(
            f"loss.over_batch is true, and {counted(count, 'training case')} without a reference: "
            "the Dice of a whole batch needs classes for all of it. Set "
            "--config.distillation.unlabelled=hard, or --config.loss.over_batch=false."
        )


def check_same_cases(experiments: Sequence[experiment_lib.Experiment], data: run_data.Data) -> None:
    """Raises UserError if students that share their batches learn from different cases."""
    used = [
        (run_data.training_cases(each, data), run_data.unlabelled_cases(each, data))
        for each in experiments
    ]
    if any(each != used[0] for each in used):
        found = ", ".join(
            f"{len(known) + len(more)} have {' and '.join(each.modalities)}"
            for each, (known, more) in zip(experiments, used, strict=True)
        )
        raise UserError(
            f"the students cannot be trained in one step, because cases lack a sequence: {found}. "
            "Train each by itself (--config.model.modalities), or set "
            "--config.data.incomplete=false."
        )

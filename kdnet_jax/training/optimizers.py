"""Optimizers and learning-rate schedules by name."""

import dataclasses
from typing import Literal

import optax
import optax.contrib

from kdnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """An optimizer and its schedule.

    Attributes:
        name: "adam", "adamw", or "sgd" (Nesterov momentum 0.99, as nnU-Net).
        learning_rate: the peak.
        schedule: "constant"; "cosine" to 0; "poly" (1 - t)^0.9 (nnU-Net); or "plateau": times
            `plateau_factor` when the training loss, averaged over an epoch, has not improved for
            `plateau_epochs` epochs (KD-Net: times 0.2 after 50).
        warmup: steps of a linear rise from 0 at the start.
        weight_decay: of adamw and sgd.
        clip: largest global gradient norm; 0 for none.
        plateau_factor: see `schedule`.
        plateau_epochs: see `schedule`.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "poly", "plateau"] = "cosine"
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 12.0
    plateau_factor: float = 0.2
    plateau_epochs: int = 50

    def __post_init__(self) -> None:
        """Raises UserError for settings that exclude each other."""
        if self.weight_decay and self.name == "adam":
            raise UserError(
                f"optimizer.weight_decay is {self.weight_decay}, which adam has no place for. Set "
                "--config.optimizer.name=adamw."
            )


def learning_rate(options: OptimizerOptions, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step (plateau: before its factor)."""
    peak = options.learning_rate
    rest = max(steps - options.warmup, 1)
    body = {
        "constant": optax.constant_schedule(peak),
        "plateau": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "poly": optax.polynomial_schedule(peak, 0.0, 0.9, rest),
    }[options.schedule]
    if not options.warmup:
        return body
    rise = optax.linear_schedule(0.0, peak, options.warmup)
    return optax.join_schedules([rise, body], [options.warmup])


def make_optimizer(
    options: OptimizerOptions, steps: int, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """Builds the transformation; the plateau schedule needs `value=loss` at each update."""
    rate = learning_rate(options, steps)
    rule = {
        "adam": lambda: optax.adam(rate),
        "adamw": lambda: optax.adamw(rate, weight_decay=options.weight_decay),
        "sgd": lambda: optax.chain(
            optax.add_decayed_weights(options.weight_decay),
            optax.sgd(rate, momentum=0.99, nesterov=True),
        ),
    }[options.name]()
    parts = [optax.clip_by_global_norm(options.clip)] if options.clip else []
    parts.append(rule)
    if options.schedule == "plateau":
        parts.append(
            optax.contrib.reduce_on_plateau(
                factor=options.plateau_factor,
                patience=options.plateau_epochs,
                accumulation_size=max(steps_per_epoch, 1),
            )
        )
    return optax.with_extra_args_support(optax.chain(*parts))

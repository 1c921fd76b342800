"""The loss of a run: a weighted sum of registered terms.

A term compares the student's output with the reference or with the teacher's output:

    (student, teacher, y, where) -> "b"

student and teacher are `output.Output` (no teacher: `None`), y is the reference "b d h w k"
(`Head.targets`), where "b d h w" is 1 for voxels with a label and 0 for those to ignore (`None`:
all have one; `Head.known`), and the result has a value for each sample. The loss is

    L = sum over roles r of weight_r * (sum of the terms of role r)

Where a batch has samples without a reference, a term counts on those with one alone, unless it is
registered as one for all; the terms of role "pl" compare the others with the teacher's labels
(`pseudo_labels.py`). The logged value of a term is its mean over all samples, 0 where it does not
count, so the sum above holds for the logged values too.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Array, Float

from kdnet_jax.losses import (
    channels,
    distillation,
    features,
    masked,
    output,
    pseudo_labels,
    reconstruction,
    segmentation,
)
from kdnet_jax.models import heads

Values = dict[str, Float[Array, "b"]]
# (student, teacher, y, where) -> "b"; `None`: the network gives nothing to compare.
Function = Callable[..., Float[Array, "b"] | None]


class Term(NamedTuple):
    """A registered term.

    Attributes:
        function: of (student, teacher, y, where), and options by keyword.
        role: which weight it has.
        everywhere: it counts on samples without a reference too.
    """

    function: Function
    role: str
    everywhere: bool = False


# By the name in `metrics.jsonl`.
TERMS: Mapping[str, Term] = {
    "gt_dice": Term(segmentation.dice_loss, "gt"),
    "gt_ce": Term(segmentation.cross_entropy_loss, "gt"),
    "gt_bce": Term(segmentation.binary_cross_entropy_loss, "gt"),
    "gt_coarse": Term(segmentation.deep_supervision, "gt"),
    "kd_dice": Term(distillation.softened_dice_loss, "kd"),
    "kd_bce": Term(distillation.softened_cross_entropy_loss, "kd"),
    "kl": Term(distillation.latent_divergence, "kl", everywhere=True),
    "pl_dice": Term(segmentation.dice_loss, "pl"),
    "pl_ce": Term(segmentation.cross_entropy_loss, "pl"),
    "pl_bce": Term(segmentation.binary_cross_entropy_loss, "pl"),
    "pl_coarse": Term(segmentation.deep_supervision, "pl"),
    "pl_soft_dice": Term(distillation.softened_dice_loss, "pl"),
    "pl_soft_bce": Term(distillation.softened_cross_entropy_loss, "pl"),
    "pl_soft_kl": Term(distillation.softened_divergence, "pl"),
    "pl_soft_mse": Term(distillation.squared_difference, "pl"),
    "kd_kl": Term(distillation.softened_divergence, "kd"),
    "kd_mse": Term(distillation.squared_difference, "kd"),
    # Each with a weight of its own: `distillation.OF_OWN_WEIGHT`.
    "hint": Term(features.hint_loss, "hint", everywhere=True),
    "gram": Term(features.gram_loss, "gram", everywhere=True),
    "contrastive": Term(features.contrastive_loss, "contrastive", everywhere=True),
    "prototype": Term(features.prototype_loss, "prototype"),
    "affinity": Term(features.affinity_loss, "affinity"),
    "masked": Term(masked.masked_cross_entropy_loss, "masked"),
    # Of a network that is pretrained, alone.
    "reconstruction": Term(reconstruction.masked_squared_error, "reconstruction"),
}


@dataclasses.dataclass(frozen=True)
class Loss:
    """A weighted sum of terms.

    Attributes:
        functions: name to term, its options bound, in the order of computation.
        weights: role to weight, in the order of the sum.
        labels: how the teacher labels samples without a reference; `None`: there are none.
    """

    functions: Mapping[str, Function]
    weights: Mapping[str, float]
    labels: pseudo_labels.Labels | None = None

    def terms(
        self,
        student: output.Output,
        teacher: output.Output | None,
        y: Float[Array, "b d h w k"],
        where: Float[Array, "b d h w"] | None,
        labelled: Float[Array, "b"] | None = None,
    ) -> Values:
        """Returns the value of each term, without its weight.

        Args:
            student: what is trained.
            teacher: who teaches it.
            y: the reference.
            where: voxels that count.
            labelled: 1 for samples with a reference, 0 for those without; `None`: all have one.
        """
        if labelled is not None and self.labels and teacher:
            y, where = pseudo_labels.complete(self.labels, teacher, y, where, labelled)
        found = {name: term(student, teacher, y, where) for name, term in self.functions.items()}
        values = {name: value for name, value in found.items() if value is not None}
        return values if labelled is None else self._counted(values, labelled)

    def _counted(self, values: Values, labelled: Float[Array, "b"]) -> Values:
        """Returns each term as 0 for the samples on which it does not count."""
        counted = {}
        for name, value in values.items():
            term = TERMS[name]
            its = 1 - labelled if term.role == "pl" else labelled
            counted[name] = value if term.everywhere else value * its
            # Against the reference or, in its place, the teacher's decisions: computed once.
            if term.role == "gt" and self.labels and self.labels.form == "hard":
                counted[name.replace("gt", "pl", 1)] = value * (1 - labelled)
        return counted

    def total(self, terms: Values) -> Float[Array, "b"]:
        """Returns the weighted sum of terms."""
        by_role = {
            role: [value for name, value in terms.items() if TERMS[name].role == role]
            for role in self.weights
        }
        return channels.add(
            self.weights[role] * channels.add(values) for role, values in by_role.items() if values
        )


def of_options(
    head: heads.Head,
    loss: segmentation.LossOptions | None = None,
    kd: distillation.DistillationOptions | None = None,
    *,
    unlabelled: bool = False,
) -> Loss:
    """Returns the loss that the options of a run describe.

    Without a teacher it is L_GT, or the error of a reconstruction; with one KD-Net's
    lambda L_KD + (1 - lambda) L_GT + alpha L_KL.

    Args:
        head: what the student's channels are.
        loss: the form of L_GT (the section `loss` of a config); `None`: its defaults.
        kd: of a student (the section `distillation`); `None` without a teacher.
        unlabelled: there are samples without a reference, which the teacher labels.
    """
    loss = loss or segmentation.LossOptions()
    if loss.reconstructs:
        return Loss({"reconstruction": _bound("reconstruction")}, {"reconstruction": 1.0})
    plain = loss.form == "dice_ce"
    entropy = "gt_ce" if plain and head.kind == "softmax" else "gt_bce"
    chosen = {
        "gt_dice": _bound("gt_dice", background=not plain, over_batch=loss.over_batch),
        entropy: _bound(entropy),
    }
    # The coarser levels have the two terms of the full one.
    chosen["gt_coarse"] = _bound("gt_coarse", terms=tuple(chosen.values()))
    if kd is None:
        return Loss(chosen, {"gt": 1.0})
    # Without weight a term is not computed.
    if kd.kd_weight:
        chosen |= _between_outputs(kd, "kd", **_softened(kd))
    weights = {"kd": kd.kd_weight, "gt": 1 - kd.kd_weight}
    # Then the bottlenecks need not be comparable.
    if kd.latent_weight:
        chosen["kl"] = _bound(
            "kl",
            direction=kd.kl_direction,
            softmax=kd.latent_softmax,
            reduction=kd.latent_reduction,
        )
        weights["kl"] = kd.latent_weight
    options = {
        "masked": _softened(kd),
        "contrastive": {"temperature": kd.contrastive_temperature},
    }
    for name in distillation.OF_OWN_WEIGHT:
        if weight := kd.weight(name):
            chosen[name] = _bound(name, **options.get(name, {}))
            weights[name] = weight
    if not unlabelled:
        return Loss(chosen, weights)
    if kd.unlabelled != "hard":
        soft, sharp = kd.unlabelled_temperature, kd.sharpening
        ours, theirs = (soft, soft) if kd.unlabelled == "soft" else (1.0, sharp)
        tempered = {"teacher_temperature": theirs, "student_temperature": ours}
        chosen |= _between_outputs(kd, "pl_soft", weighted=True, **tempered)
    weights["pl"] = kd.unlabelled_weight
    return Loss(chosen, weights, pseudo_labels.of_options(kd))


def reads_references(kd: distillation.DistillationOptions) -> bool:
    """Returns whether a term compares with the reference, or needs its classes."""
    own = (name for name in distillation.OF_OWN_WEIGHT if kd.weight(name))
    return kd.kd_weight < 1 or not all(TERMS[name].everywhere for name in own)


def features_of(kd: distillation.DistillationOptions) -> dict[str, list[str]]:
    """Returns which features the terms compare, each with the keys that have them compared."""
    compared = {
        features.BOTTLENECK: ("latent", *distillation.PROJECTED),
        features.LAST: ("prototype", "affinity"),
    }
    found = {
        name: [f"distillation.{role}_weight" for role in roles if kd.weight(role)]
        for name, roles in compared.items()
    }
    return {name: keys for name, keys in found.items() if keys}


def _between_outputs(
    kd: distillation.DistillationOptions, role: str, **chosen: object
) -> dict[str, Function]:
    """Returns the terms of the form of L_KD, under the names of a role."""
    entropies = {"voxels": kd.kd_voxels} | chosen
    if kd.kd_form == "kl":
        return {f"{role}_kl": _bound(f"{role}_kl", standardize=kd.standardize_logits, **entropies)}
    if kd.kd_form == "mse":
        return {f"{role}_mse": _bound(f"{role}_mse", **entropies)}
    return {
        f"{role}_dice": _bound(f"{role}_dice", **chosen),
        f"{role}_bce": _bound(f"{role}_bce", **entropies),
    }


def _softened(kd: distillation.DistillationOptions) -> dict[str, float]:
    return {
        "teacher_temperature": kd.temperature,
        "student_temperature": kd.temperature if kd.temper_student else 1.0,
        "scale": kd.temperature**2 if kd.scale_by_temperature else 1.0,
    }


def _bound(name: str, **options: object) -> Function:
    return functools.partial(TERMS[name].function, **options)

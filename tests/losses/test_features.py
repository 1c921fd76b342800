"""Terms on features and the masked term by hand, across widths and grids; the teacher is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdnet_jax.losses import distillation, objective, output
from kdnet_jax.models import heads
from tests.helpers import glioma
from tests.helpers.arrays import along_width

NOTHING = jnp.zeros((1, 1, 1, 1, 4))


def out(
    head: heads.Head = glioma.SOFTMAX,
    logits: jax.Array = NOTHING,
    projector: jax.Array | None = None,
    **features: list[list[float]],
) -> output.Output:
    arrays = {name: along_width(rows) for name, rows in features.items()}
    return output.Output(logits, arrays, head, projector)


def term(name: str, student: output.Output, teacher: output.Output, *reference: jax.Array) -> float:
    kd = distillation.DistillationOptions(temperature=1.0, **{f"{name}_weight": 1.0})
    y, where = reference if len(reference) == 2 else (*(reference or (NOTHING,)), None)
    return (
        objective.of_options(student.head, kd=kd).functions[name](student, teacher, y, where).item()
    )


def test_hints_meet_by_the_projector_whatever_the_widths() -> None:
    student = out(projector=jnp.array([[1.0, 3.0]]), bottleneck=[[2.0]])
    # (2, 6) and (2, 4): (0 + 4) / 2.
    assert term("hint", student, out(bottleneck=[[2.0, 4.0]])) == pytest.approx(2)
    same = out(bottleneck=[[2.0, 4.0]])
    assert term("hint", same, out(bottleneck=[[2.0, 5.0]])) == pytest.approx(0.5)


def test_a_hint_of_another_grid_is_interpolated() -> None:
    # Along a line, 4 voxels of a ramp at the centres of 2: 0.5 and 2.5.
    teacher = out(bottleneck=[[0.0], [1.0], [2.0], [3.0]])
    blurred = jax.image.resize(teacher.features["bottleneck"], (1, 1, 1, 2, 1), "linear")
    assert term("hint", out(bottleneck=blurred[0, 0, 0]), teacher) == 0
    assert blurred[0, 0, 0, 1, 0] - blurred[0, 0, 0, 0, 0] > 1
    fine = out(bottleneck=[[1.0], [1.0], [1.0], [1.0]])
    assert term("hint", fine, out(bottleneck=[[1.0], [1.0]])) == 0


def test_gram_matrices_by_hand() -> None:
    # I / 2, and ones: 2 x 0.5^2 + 2 x 1^2.
    student, teacher = out(bottleneck=[[1, 0], [0, 1]]), out(bottleneck=[[1, 1], [1, 1]])
    assert term("gram", student, teacher) == pytest.approx(2.5)
    # Where the voxels lie does not matter.
    assert term("gram", student, out(bottleneck=[[0, 1], [1, 0]])) == 0


def test_a_contrast_by_hand() -> None:
    # Voxels (1, 0) and (0, 1) of any length against the same and, of the second, its opposite.
    student, right = out(bottleneck=[[3.0, 0], [0, 1]]), out(bottleneck=[[1.0, 0], [0, 2]])
    t = distillation.DistillationOptions().contrastive_temperature
    assert term("contrastive", student, right) == pytest.approx(np.log1p(np.exp(-1 / t)), abs=2e-6)
    wrong = out(bottleneck=[[1.0, 0], [0, -2]])
    # ln(1 + e^(-1/t)) of the first voxel; of the second, cosine -1 beside 0, ln(1 + e^(1/t)).
    expected = np.mean([np.log1p(np.exp(-1 / t)), np.log1p(np.exp(1 / t))])
    assert term("contrastive", student, wrong) == pytest.approx(expected, rel=1e-5)
    # One of another width meets by the projector.
    narrow = out(projector=jnp.array([[1.0, 1.0]]), bottleneck=[[2.0], [2.0]])
    assert term("contrastive", narrow, right) == pytest.approx(np.log(2), rel=1e-5)


def test_of_a_large_bottleneck_evenly_spaced_voxels_are_contrasted() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 20, 3))
    every, third = (
        term("contrastive", *(out(bottleneck=each[::step].tolist()) for each in (ours, theirs)))
        for step in (1, 3)
    )
    # 20 voxels along an axis: every third, which are 7.
    assert every == pytest.approx(third, rel=1e-6)
    u, v = (each[::3] / np.linalg.norm(each[::3], axis=1, keepdims=True) for each in (ours, theirs))
    logits = u @ v.T / 0.1
    slow = np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)])
    assert every == pytest.approx(slow, rel=1e-5)


@glioma.each_head
@pytest.mark.parametrize("ignored", [False, True])
def test_prototypes_and_affinities_by_hand(head: heads.Head, ignored: bool) -> None:
    # Two voxels of two classes (or regions); the other classes have none.
    ours, theirs = [[1.0, 0], [1, 1]], [[2.0, 0, 0], [0, 0, 5]]
    first, second = np.eye(len(head.outputs))[:2].tolist()
    rows, where = [first, second], None
    if ignored:
        ours, theirs = [*ours, [9.0, -9]], [*theirs, [0, 7, 0]]
        rows, where = [*rows, [0] * len(first)], jnp.array([1.0, 1, 0])[None, None, None]
    student, teacher = out(head, decoder_0=ours), out(head, decoder_0=theirs)
    y = along_width(rows)
    # Cosines 1, r / r, 1 with r = 1 / sqrt 2, and 1, 0 / 0, 1.
    assert term("prototype", student, teacher, y, where) == pytest.approx(0.25)
    assert term("affinity", student, teacher, y, where) == pytest.approx(0.5)


def test_only_a_teacher_that_is_right_and_better_is_followed() -> None:
    sure, wrong, even = np.log([0.7, 0.1, 0.1, 0.1]), np.log([0.1, 0.7, 0.1, 0.1]), np.zeros(4)
    surer = np.log([0.97, 0.01, 0.01, 0.01])
    teacher = out(logits=along_width([sure, wrong, sure]))
    student = out(logits=along_width([even, even, surer]))
    y = along_width([[1, 0, 0, 0]] * 3)
    expected = np.log(0.7 / 0.25) * np.log(4) / 3
    assert term("masked", student, teacher, y) == pytest.approx(expected, rel=1e-5)


def test_of_regions_the_teacher_has_to_be_right_in_each() -> None:
    half, sure = 0.0, float(np.log(9))  # 0.5 and 0.9
    teacher = out(glioma.REGIONS, along_width([[sure, sure, sure], [sure, sure, -sure]]))
    student = out(glioma.REGIONS, along_width([[half] * 3] * 2))
    y = along_width([[1, 1, 1]] * 2)
    expected = np.log(0.9 / 0.5) * np.log(2) / 2
    assert term("masked", student, teacher, y) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", distillation.OF_OWN_WEIGHT)
def test_no_gradient_flows_into_the_teacher(name: str) -> None:
    rng = np.random.default_rng(0)
    features = {"bottleneck": rng.normal(size=(5, 3)), "decoder_0": rng.normal(size=(5, 2))}
    logits, labels = jnp.asarray(rng.normal(size=(1, 1, 1, 5, 4))), np.array([0, 1, 2, 3, 3])
    y = along_width(np.eye(4)[labels])
    kd = distillation.DistillationOptions(**{f"{name}_weight": 1.0})
    function = objective.of_options(glioma.SOFTMAX, kd=kd).functions[name]

    def value(student: tuple, teacher: tuple) -> jax.Array:
        outputs = [output.Output(*each, glioma.SOFTMAX) for each in (student, teacher)]
        return function(*outputs, y, None).sum()

    teacher = out(logits=logits + 4 * y, **features)
    student = out(logits=logits, **{each: rows**3 for each, rows in features.items()})
    given = [(each.logits, dict(each.features)) for each in (student, teacher)]
    to_student, to_teacher = jax.grad(value, argnums=(0, 1))(*given)
    assert any(leaf.any() for leaf in jax.tree.leaves(to_student))
    assert not any(leaf.any() for leaf in jax.tree.leaves(to_teacher))

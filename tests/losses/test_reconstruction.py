"""The error of a reconstruction by hand: hidden voxels alone, and no background."""

import jax.numpy as jnp
import pytest

from kdnet_jax.augment import masking
from kdnet_jax.evaluation import reconstruction as evaluation
from kdnet_jax.losses import objective, output, segmentation
from kdnet_jax.training import steps
from tests.helpers import glioma, stores
from tests.helpers.arrays import along_width


def test_hidden_voxels_that_are_no_background_count() -> None:
    loss = objective.of_options(glioma.SOFTMAX, segmentation.LossOptions("reconstruction"))
    # Of one feature two sequences are made, f and 2 f.
    last, projector = along_width([[1], [2], [3], [5]]), jnp.array([[1.0, 2.0]])
    image = along_width([[2, 3], [0, 7], [1, 1], [0, 0]])
    where = jnp.array([1.0, 1, 0, 1])[None, None, None]
    student = output.Output(along_width([[0] * 4] * 4), {"decoder_0": last}, glioma.SOFTMAX)
    student = output.Output(student.logits, student.features, student.head, projector)
    terms = loss.terms(student, None, image, where)
    # (1 - 2)^2, (2 - 3)^2 and (4 - 7)^2 of three; the third voxel is seen, the fourth is empty.
    assert terms["reconstruction"].tolist() == [pytest.approx(11 / 3)]
    assert loss.total(terms).tolist() == [pytest.approx(11 / 3)]
    # A patch in which nothing counts.
    nothing = loss.terms(student, None, 0 * image, where)
    assert nothing["reconstruction"].tolist() == [0]


def test_the_share_that_is_explained_by_hand() -> None:
    found = [{"t1": (1.0, 4.0), "t2": (9.0, 9.0)}, {"t1": (2.0, 8.0), "t2": (0.0, 0.0)}]
    assert evaluation.explained(found) == {"t1": pytest.approx(0.75), "t2": 0}
    # A network that gives back what it sees explains nothing of what it does not; one that says
    # half of a constant image three quarters.
    case = stores.make_case(1, (6, 9, 8), tumour=False)
    for apply, value in (
        (lambda _, x: (x, {"decoder_0": x}), 0),
        (lambda _, x: (x, {"decoder_0": jnp.ones_like(x)}), 0.75),
    ):
        sums = evaluation.summer(apply, {"t2": 1}, (8, 4, 4), masking.Cubes(0.5, 2))
        params = {steps.PROJECTOR: {"kernel": jnp.ones((1, 1))}}
        ((place, own),) = sums(params, [(3, case)])
        assert place == 3
        assert own.keys() == {"t2"}
        # 2 x 2 x 2 voxels in 8 of 16 cubes, of which 6 of 8 planes lie in the case: its image is 2.
        assert 0 < own["t2"][1] <= 4 * 64
        assert own["t2"][1] % 16 == 0
        assert evaluation.explained([own])["t2"] == pytest.approx(value)
        # At the next validation the same is hidden.
        assert [*sums(params, [(3, case)])] == [(3, own)]

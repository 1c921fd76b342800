"""A model of a task of its own, handed over in every form."""

import pathlib

import numpy as np
import pytest

pytest.importorskip("torch")

from kdnet_jax.interop import foreign
from kdnet_jax.interop.export import artifact, container, hand_over, hub
from kdnet_jax.runs import model_folder
from tests.helpers import foreign_folders as folders
from tests.helpers import own_tasks


def test_every_form_is_of_its_task(tmp_path: pathlib.Path) -> None:
    plans = own_tasks.plans(own_tasks.plan(patch_size=[8, 8, 16]))
    folder = folders.results(tmp_path, channels=2, plans_json=plans, dataset_json=own_tasks.DATASET)
    # ONNX is for the project's own U-Net alone.
    formats = [each for each in hand_over.FORMATS if each != hand_over.ONNX_FORMAT]
    package = hand_over.gather(folder, (), "", formats)
    output = tmp_path / "out"
    said = "\n".join(hand_over.write(package, output, formats))
    assert "adc, ct to background, organ, lesion" in said
    model = model_folder.read(output).model
    assert model == package.run.model
    assert (model.task.name, model.spacing) == ("organs", (3.0, 0.5, 0.75))
    for path in ("pytorch", "pytorch/nnUNet_results"):
        again = foreign.read(output / path)
        assert (again.task, again.spacing) == (model.task, model.spacing)
        assert again.modalities == ("adc", "ct")
    # Edges that the strides divide, (2, 4, 4), and no more.
    x = np.random.default_rng(0).normal(size=(1, 4, 8, 12, 2)).astype(np.float32)
    found = np.asarray(artifact.run(output / hand_over.ARTIFACT, x))
    expected = folders.answer(model.network.network, foreign.read(folder).members[0], x)
    odds = np.exp(expected - expected.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(found, odds / odds.sum(axis=-1, keepdims=True), atol=1e-5)
    card = (output / hub.README).read_text("utf-8")
    # A CT and a map of MRI; nobody has said how good it is.
    assert "- adc\n- ct\n---\n" in card
    assert "It segments organs" in card
    assert (output / container.DOCKERFILE).exists()
    assert not (output / hand_over.CARD).exists()

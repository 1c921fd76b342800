"""Folders that nnU-Net's own trainer saved, and what its own predictor makes of ours."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import prepare
from kdnet_jax.interop import conversion, foreign, writing
from kdnet_jax.models import adapted, heads, networks, nnunet
from tests.helpers import foreign_folders as folders
from tests.helpers import own_tasks, tiny_cases

CPU = torch.device("cpu")
REMAINING = {
    "data_identifier": "nnUNetPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "batch_dice": False,
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0},
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0},
}


def train(
    root: pathlib.Path,
    config: object,
    monkeypatch: pytest.MonkeyPatch,
    *,
    dataset: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    **changes: object,
) -> pathlib.Path:
    """Lets nnU-Net's trainer make a network and save it, untrained; returns its folder."""
    dataset = dataset or folders.dataset()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(root / name))
    data = root / "nnUNet_preprocessed" / "Dataset137_BraTS2021" / "nnUNetPlans_3d_fullres"
    data.mkdir(parents=True)
    (data / "case.b2nd").touch()
    plan = (plan or folders.plan(config)) | REMAINING
    changes = {
        "foreground_intensity_properties_per_channel": {str(i): {} for i in range(4)},
        "label_manager": "LabelManager",
    } | changes
    plans = folders.plans({"3d_fullres": plan}, **changes)
    given = json.loads(json.dumps(plans)) | {"continue_training": False}
    torch.manual_seed(0)
    trainer = nnUNetTrainer(given, "3d_fullres", 0, dataset, device=CPU)
    trainer.initialize()
    trainer.logger.log("train_losses", np.float32(0.5), 0)
    trainer.logger.log("dice_per_class_or_region", [np.float64(0.5)] * 3, 0)
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    folder = pathlib.Path(trainer.output_folder).parent
    trainer.save_checkpoint(str(folder / "fold_0" / "checkpoint_final.pth"))
    folders.write_json(folder / "plans.json", plans)
    folders.write_json(folder / "dataset.json", dataset)
    return folder


def predictor(folder: pathlib.Path) -> nnUNetPredictor:
    """Returns nnU-Net's predictor of the folder's first fold."""
    found = nnUNetPredictor(device=CPU)
    found.initialize_from_trained_model_folder(str(folder), None)
    found.network.load_state_dict(found.list_of_parameters[0])
    found.network.eval()
    return found


def preprocessed(
    folder: pathlib.Path, scan: Mapping[str, pathlib.Path], dataset: dict[str, Any]
) -> np.ndarray:
    """Returns a scan, channel -> file, as nnU-Net prepares it for a network of this folder."""
    plans = PlansManager(str(folder / "plans.json"))
    files = [str(path) for path in scan.values()]
    configuration = plans.get_configuration("3d_fullres")
    return DefaultPreprocessor().run_case(files, None, plans, configuration, dataset)[0]


@pytest.mark.parametrize("config", [folders.PLAIN, folders.RESIDUAL], ids=["plain", "residual"])
def test_what_its_trainer_saves_predicts_the_same(tmp_path, monkeypatch, config) -> None:
    folder = train(tmp_path, config, monkeypatch)
    model = foreign.read(folder)
    assert model.about["trainer"] == "nnUNetTrainer"
    assert model.mirror
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 16, 4)).astype(np.float32)
    expected = folders.answer_of_torch(predictor(folder).network, x)
    found = folders.answer(model.network, model.members[0], x)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("reader", "transposed"),
    [("SimpleITKIO", [2, 0, 1]), ("NibabelIO", [0, 1, 2]), ("NibabelIOWithReorient", [1, 2, 0])],
)
def test_it_sees_what_nnunet_sees(tmp_path, monkeypatch, reader, transposed) -> None:
    """The same scan through both ways of preparing, and the same network: the same labels."""
    spacing = 1.0
    case = tiny_cases.write_case(tmp_path / "cohort", 3, edge=24, spacing=spacing, radius=6.0)
    names = {m: case / f"{case.name}_{m}.nii.gz" for m in ("t1", "t1ce", "t2", "flair")}
    folder = train(
        tmp_path,
        folders.RESIDUAL,
        monkeypatch,
        image_reader_writer=reader,
        transpose_forward=transposed,
        transpose_backward=np.argsort(transposed).tolist(),
    )
    theirs = preprocessed(folder, names, folders.dataset())
    prepared, _ = prepare.prepare_case(prepare.unlabelled_case(names), spacing=spacing)
    model = foreign.read(folder)
    # In the network's axes; both crop to the brain, and ours is float16.
    ours = turned(prepared.image, model.axes)
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 3, 0), atol=5e-3)

    x = np.asarray(prepared.image, np.float32)[:16, :16, :16]
    found = predictor(folder)
    logits = folders.answer_of_torch(found.network, turned(x, model.axes)[None])[0]
    labels = found.label_manager.convert_logits_to_segmentation(logits.transpose(3, 0, 1, 2))
    assert len(np.unique(labels)) > 2
    network = dataclasses.replace(model.network, bfloat16=False)
    config = adapted.AdaptedConfig(network, model.head, model.order, model.axes)
    params = jax.tree.map(jnp.asarray, adapted.join_members(model.members))
    ours, _ = jax.jit(config.module().apply)(params, jnp.asarray(x)[None])
    # nnU-Net's converter of BraTS: ED 1, NCR 2, ET 3.
    expected = painted(ours[0], {"WT": 1, "TC": 2, "ET": 3})
    assert (labels == turned(expected[..., None], model.axes)[..., 0]).mean() > 0.999


@pytest.mark.parametrize("transposed", [[0, 1, 2], [2, 0, 1]])
def test_it_sees_another_task_as_nnunet_does(tmp_path, monkeypatch, transposed) -> None:
    """Thick slices, a channel of z-scores over all voxels and a CT: the same input and labels."""
    spacing = (3.0, 0.5, 0.75)  # S, P, L, as the files below
    config = dataclasses.replace(folders.PLAIN, out_channels=3)
    plan = own_tasks.plan(config, spacing=[spacing[axis] for axis in transposed])
    folder = train(
        tmp_path,
        config,
        monkeypatch,
        dataset=own_tasks.DATASET,
        plan=plan,
        transpose_forward=transposed,
        transpose_backward=np.argsort(transposed).tolist(),
        foreground_intensity_properties_per_channel=own_tasks.properties(),
    )
    rng, names = np.random.default_rng(0), {}
    for name, (mean, deviation) in {"adc": (900, 150), "ct": (50, 200)}.items():
        image = np.zeros((26, 22, 18), np.int16)
        image[1:-1, 2:, :16] = rng.normal(mean, deviation, (24, 20, 16))
        image[8:16, 8:16, 4:9] = 0  # counts as any other value
        names[name] = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(image, np.diag([-0.75, -0.5, 3.0, 1.0])), names[name])
    theirs = preprocessed(folder, names, own_tasks.DATASET)
    converted = conversion.convert(folder)
    model = converted.model
    assert model.spacing == spacing
    case = prepare.unlabelled_case(names, task=model.task)
    prepared, _ = prepare.prepare_case(case, task=model.task, spacing=model.spacing)
    ours = turned(prepared.image, model.network.axes)
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 3, 0), atol=5e-3)

    x = np.asarray(prepared.image, np.float32)[:16, :16, :24]
    found = predictor(folder)
    logits = folders.answer_of_torch(found.network, turned(x, model.network.axes)[None])[0]
    labels = found.label_manager.convert_logits_to_segmentation(logits.transpose(3, 0, 1, 2))
    assert len(np.unique(labels)) > 1
    network = networks.portable(model.network)
    ours, _ = jax.jit(network.module().apply)(converted.params, jnp.asarray(x)[None])
    classes = model.head.decide(np.asarray(model.head.probabilities(ours[0])))
    assert (labels == turned(classes[..., None], model.network.axes)[..., 0]).mean() > 0.999


def test_a_plan_of_thick_slices_gives_the_same_logits(tmp_path, monkeypatch) -> None:
    """As nnU-Net plans 0.62 x 0.62 x 3.6 mm: flat kernels and strides at first and at last."""
    flat, cube, halved = (1, 3, 3), (3, 3, 3), (1, 2, 2)
    config = nnunet.PlainConvConfig(
        features=(2, 3, 4, 4, 4, 4, 4),
        kernels=(flat, flat, *(cube,) * 5),
        strides=((1, 1, 1), halved, halved, (2, 2, 2), (2, 2, 2), halved, halved),
        blocks=(2,) * 7,
        decoder_blocks=(2,) * 6,
        out_channels=3,
    )
    plan = own_tasks.plan(config, patch_size=[20, 320, 256], spacing=[3.6, 0.625, 0.625])
    changes = {"foreground_intensity_properties_per_channel": own_tasks.properties()}
    folder = train(tmp_path, config, monkeypatch, dataset=own_tasks.DATASET, plan=plan, **changes)
    model = foreign.read(folder)
    assert (model.window, model.network.divisor) == ((20, 320, 256), (4, 64, 64))
    x = np.random.default_rng(0).normal(size=(1, 8, 128, 64, 2)).astype(np.float32)
    expected = folders.answer_of_torch(predictor(folder).network, x)
    found = folders.answer(model.network, model.members[0], x)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def turned(x: np.ndarray, axes: str) -> np.ndarray:
    """Returns "d h w c" in SPL with its axes along other letters."""
    lines = [next(i for i, line in enumerate(("SI", "PA", "LR")) if a in line) for a in axes]
    return np.flip(x.transpose([*lines, 3]), [i for i, a in enumerate(axes) if a not in "SPL"])


def painted(logits: Any, values: dict[str, int]) -> np.ndarray:
    """Returns regions painted one over the other, as nnU-Net does it, nested or not."""
    labels = np.zeros(logits.shape[:3], np.uint8)
    for region, value in values.items():
        labels[np.asarray(logits[..., task_lib.GLIOMA.region_names.index(region)]) > 0] = value
    return labels


@pytest.mark.parametrize("config", [folders.PLAIN, folders.RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("head", ["regions", "softmax"])
def test_its_predictor_takes_what_is_written(tmp_path, config, head) -> None:
    config = dataclasses.replace(config, out_channels=3 if head == "regions" else 4)
    order = tuple(range(config.out_channels))
    given = folders.model_of(config, head=head, order=order, mirror=False)
    writing.write(tmp_path, given)
    (results,) = (tmp_path / "nnUNet_results").glob("*/*")
    found = predictor(results)
    assert found.allowed_mirroring_axes is None
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 1)).astype(np.float32)
    order = (2, 1, 0) if head == "regions" else (0, 1, 2, 3)  # WT TC ET; the classes
    expected = folders.answer(config, given.members[0], x)[..., list(order)]
    theirs = folders.answer_of_torch(found.network, x)
    np.testing.assert_allclose(theirs, expected, atol=1e-5 * np.abs(expected).max())

    logits = np.random.default_rng(1).normal(size=(4, 4, 4, len(order))).astype(np.float32)
    labels = found.label_manager.convert_logits_to_segmentation(
        np.moveaxis(logits[..., list(order)], -1, 0)
    )
    values = {"WT": 2, "TC": 1, "ET": 3}
    is_regions = head == "regions"
    wanted = painted(logits, values) if is_regions else np.argmax(logits, axis=-1)
    np.testing.assert_array_equal(labels, wanted)


@pytest.mark.parametrize("kind", ["regions", "softmax"])
def test_its_predictor_decides_another_task_as_here(tmp_path, kind) -> None:
    """Of nested regions; its painting does not look at what contains a region."""
    head = heads.Head(own_tasks.REGIONS, kind)
    count = len(head.outputs)
    order = tuple(reversed(range(count)))
    given = folders.model_of(
        dataclasses.replace(folders.PLAIN, out_channels=count),
        task=own_tasks.REGIONS,
        modalities=("a", "c"),
        head=kind,
        order=order,
    )
    writing.write(tmp_path, given)
    (results,) = (tmp_path / "nnUNet_results").glob("*/*")
    found = predictor(results)
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 2)).astype(np.float32)
    ours = folders.answer(given.network, given.members[0], x)[..., list(order)]
    # The regions are core, dot, all; nnU-Net's labels are in the order in which they are painted.
    theirs = folders.answer_of_torch(found.network, x)
    painted = [2, 0, 1] if kind == "regions" else [0, 1, 2, 3]
    np.testing.assert_allclose(theirs, ours[..., painted], atol=1e-5 * np.abs(ours).max())

    probs = np.random.default_rng(1).uniform(size=(6, 6, 6, count)).astype(np.float32)
    if kind == "regions":
        probs = np.sort(probs, axis=-1)[..., [1, 0, 2]]
    labels = found.label_manager.convert_probabilities_to_segmentation(
        np.moveaxis(probs[..., painted], -1, 0)
    )
    np.testing.assert_array_equal(labels, head.decide(probs))
    assert len(np.unique(labels)) == 4

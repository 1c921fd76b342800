"""A model that is handed over: all of it comes back, and damage is told."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.core import files
from kdnet_jax.errors import UserError
from kdnet_jax.models import adapted, networks, unet
from kdnet_jax.prediction import predictors
from kdnet_jax.runs import calibration, model_folder, trained
from kdnet_jax.runs import model as model_lib
from tests.helpers import foreign_folders

CALIBRATED = calibration.Calibration(1.25, (), (calibration.VolumeError(-0.5, 0.75, 5),) * 3)
OWN = unet.UNetConfig(widths=(2, 4), head="regions", bfloat16=False, out_channels=3)


def _of_family(name: str, head: str) -> networks.Network:
    return networks.of_family(name, unet.UNetConfig(widths=(8, 16, 32), head=head))


LESION = {
    "name": "lesions",
    "channel_names": {"0": "t1", "1": "t2"},
    "labels": {"background": 0, "lesion": 1},
}
NETWORKS = [OWN, *(_of_family(name, "softmax") for name in networks.FAMILIES)]


def _write(folder: pathlib.Path, network: networks.Network = OWN) -> Any:
    model = model_lib.Model(
        task_lib.GLIOMA,
        "student",
        network,
        ("t2",),
        1.5,
        (8, 16, 24),
        overlap=0.25,
        mirror=True,
        orientation="LPS",
        calibration=CALIBRATED,
    )
    params = networks.init_params(network, 1, jax.random.key(3))
    with files.new_folder(folder) as beside:
        model_folder.fill(
            beside,
            model,
            params,
            step=7,
            known=model_lib.KnownCases(("a", "b"), True),
            about={"licence": "CC0-1.0"},
        )
    return model, params


@pytest.mark.parametrize("network", NETWORKS, ids=networks.family)
def test_all_of_a_model_comes_back(tmp_path: pathlib.Path, network: networks.Network) -> None:
    model, params = _write(tmp_path / "model", network)
    about = model_folder.read(tmp_path / "model")
    assert about.model == model
    assert (about.step, about.known.ids) == (7, ("a", "b"))
    assert about.document["licence"] == "CC0-1.0"
    run = trained.load_run(tmp_path / "model")
    assert jax.tree.structure(run.params) == jax.tree.structure(params)
    for ours, theirs in zip(*map(jax.tree.leaves, (run.params, params)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_thresholds_come_back_by_name(tmp_path: pathlib.Path) -> None:
    model, params = _write(tmp_path / "fixed")
    chosen = dataclasses.replace(model, thresholds=(0.3, 0.35, 0.45))
    with files.new_folder(tmp_path / "chosen") as beside:
        model_folder.fill(beside, chosen, params, step=7, known=model_lib.KnownCases(), about={})
    path = tmp_path / "chosen" / "model.json"
    document = json.loads(path.read_text("utf-8"))
    assert document["thresholds"] == {"ET": 0.3, "TC": 0.35, "WT": 0.45}
    assert trained.load_run(tmp_path / "chosen").model == chosen
    for wrong in ({"ET": 0.3}, {"ET": 0.3, "TC": 1.5, "WT": 0.5}, [0.3, 0.3, 0.3]):
        path.write_text(json.dumps(document | {"thresholds": wrong}), "utf-8")
        with pytest.raises(UserError, match="threshold"):
            model_folder.read(tmp_path / "chosen")
    # Models of before thresholds have none.
    del document["thresholds"]
    path.write_text(json.dumps(document), "utf-8")
    assert model_folder.read(tmp_path / "chosen").model == model


def test_models_of_before_calibration_have_none(tmp_path: pathlib.Path) -> None:
    model, _ = _write(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    document = json.loads(path.read_text("utf-8"))
    errors = document.pop("calibration")["volume_errors"]
    assert errors["TC"] == {"mean": -0.5, "deviation": 0.75, "cases": 5}
    path.write_text(json.dumps(document), "utf-8")
    plain = dataclasses.replace(model, calibration=calibration.NONE)
    assert model_folder.read(tmp_path / "model").model == plain


def test_nothing_but_jax_and_orbax_reads_the_parameters(tmp_path: pathlib.Path) -> None:
    _, params = _write(tmp_path / "model")
    from orbax.checkpoint import v1 as ocp

    loaded = ocp.load(tmp_path / "model/params")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, params))


def test_a_model_of_another_task_comes_back_with_it(tmp_path: pathlib.Path) -> None:
    task = dataset_json.parse(LESION, "lesions")
    model = model_lib.Model(
        task,
        "baseline",
        unet.UNetConfig(widths=(2, 4), out_channels=2),
        ("t1",),
        (3, 1, 1),
        (8,) * 3,
    )
    params = networks.init_params(model.network, 1, jax.random.key(0))
    with files.new_folder(tmp_path / "model") as beside:
        known = model_lib.KnownCases((), complete=True)
        model_folder.fill(beside, model, params, step=0, known=known, about={})
    read = model_folder.read(tmp_path / "model").model
    assert read == model
    assert read.outputs == ("background", "lesion")


def _change(document: dict[str, Any], key: str, value: Any) -> None:
    document[key] = value


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda d: _change(d, "version", 2), r"version 2; expected 'kdnet_jax model', 1"),
    (lambda d: _change(d, "format", "other"), "format 'other'"),
    (lambda d: d.pop("network"), "is damaged"),
    (lambda d: _change(d, "window", 3), "window is 3; expected 3 values"),
    (lambda d: _change(d["network"], "family", "vnet"), "the kind 'vnet'"),
    (lambda d: _change(d["network"], "heads", 3), "is damaged"),
    (lambda d: _change(d["network"], "widths", [2, 8]), "parameters of another network"),
    (lambda d: _change(d, "modalities", ["t1", "t2"]), "parameters of another network"),
    (lambda d: _change(d, "task", "gliomas"), "its task is 'gliomas'; expected an object"),
    (
        lambda d: _change(d, "task", LESION),
        "3 outputs, but its task lesions expects lesion",
    ),
    (lambda d: _change(d, "parameters_sha256", "0" * 64), "is not what model.json says"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_changed_document_is_refused(
    tmp_path: pathlib.Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    _write(tmp_path / "model")
    path = tmp_path / "model/model.json"
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(UserError, match=message):
        trained.load_run(tmp_path / "model")


def test_parameters_that_cannot_be_read_are_told(tmp_path: pathlib.Path) -> None:
    _write(tmp_path / "model")
    shutil.rmtree(tmp_path / "model/params")
    with pytest.raises(UserError, match=r"params cannot be read"):
        trained.load_run(tmp_path / "model")


def test_a_folder_that_is_there_is_not_overwritten(tmp_path: pathlib.Path) -> None:
    _write(tmp_path / "model")
    with pytest.raises(UserError, match="is there already"):
        _write(tmp_path / "model")


def test_a_failure_leaves_nothing(tmp_path: pathlib.Path) -> None:
    def fail() -> None:
        with files.new_folder(tmp_path / "new/model") as beside:
            (beside / "file").write_text("half", "utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_told_where_the_folder_has_gone_meanwhile(tmp_path: pathlib.Path) -> None:
    def fail() -> None:
        with files.new_folder(tmp_path / "new/model") as beside:
            shutil.rmtree(beside.parent)
            raise UserError("what went wrong")

    with pytest.raises(UserError, match="what went wrong"):
        fail()


def test_windows_of_other_tools_need_not_divide_by_all_axes_together() -> None:
    network = adapted.AdaptedConfig(foreign_folders.PLAIN, "regions", (0, 1, 2))
    assert network.divisor == (2, 4, 4)
    model = model_lib.Model(task_lib.GLIOMA, "teacher", network, ("t1",), 1.0, (6, 8, 8))
    assert predictors.prediction_mesh(model).shape["space"] == 1


def test_networks_of_other_strides_share_a_pass_over_a_whole_scan() -> None:
    threes = dataclasses.replace(
        foreign_folders.PLAIN, strides=((1, 1, 1), (1, 3, 3), (1, 1, 1)), out_channels=4
    )
    kinds = (OWN, adapted.AdaptedConfig(threes, "softmax", (0, 1, 2, 3)))
    models = [
        model_lib.Model(task_lib.GLIOMA, "teacher", each, ("t1",), 1.0, (6,) * 3) for each in kinds
    ]
    assert predictors.predictor(models, whole=True).window((7, 7, 7)) == (8, 12, 12)


def test_whole_scans_of_a_foreign_network_are_not_split() -> None:
    network = _of_family("dynunet", "softmax")
    model = model_lib.Model(
        task_lib.GLIOMA, "teacher", network, ("t1",), 1.0, (16, 16, 16), whole=True
    )
    assert predictors.prediction_mesh(model).shape["space"] == 1
    split = dataclasses.replace(model, space=2)
    assert predictors.prediction_mesh(split).shape["space"] == 1

"""The ONNX file: ONNX Runtime gives what the network gives, on small windows and on real scans."""

import builtins
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import prepare
from kdnet_jax.errors import UserError
from kdnet_jax.interop.export import onnx_file
from kdnet_jax.models import heads, networks, unet
from kdnet_jax.prediction import inference
from tests.helpers import commands

_NETWORKS = {
    "kdnet": unet.UNetConfig(widths=(4, 8, 8)),
    "learned": unet.UNetConfig(widths=(4, 6, 8), down="strided", up="learned", last_blocks=1),
    "regions": unet.UNetConfig(widths=(4, 8), blocks=1, head="regions", out_channels=3),
    "thick slices": unet.UNetConfig(
        widths=(4, 6, 8),
        strides=((1, 2, 2), (2, 2, 2)),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    ),
    "thick slices, learned": unet.UNetConfig(
        widths=(4, 6, 8),
        down="strided",
        up="learned",
        strides=((1, 2, 2), (2, 1, 2)),
        kernels=((1, 3, 3), (3, 3, 1), (3, 3, 3)),
        deep_supervision=True,
    ),
}


def _drawn(network: unet.UNetConfig, modalities: int) -> dict:
    """Parameters of which none is 0 or 1, as biases and scales of a new network are."""
    params = networks.init_params(network, modalities, jax.random.key(0))
    generator = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: x + 0.1 * generator.normal(size=x.shape).astype(np.float32), params
    )


def _written(
    path: pathlib.Path, network: unet.UNetConfig, modalities: int
) -> tuple[dict, Callable]:
    head = heads.Head(task_lib.DEFAULT, network.head)
    params = _drawn(network, modalities)
    names = [f"m{i}" for i in range(modalities)]
    onnx_file.write(path, network, params, modalities=names, outputs=head.outputs)
    predict = inference.make_predict(networks.portable(network).module().apply, head, mirror=False)
    return params, predict


@pytest.mark.parametrize("name", _NETWORKS)
def test_it_gives_what_the_network_gives_at_any_size(tmp_path: pathlib.Path, name: str) -> None:
    network, path = _NETWORKS[name], tmp_path / "model.onnx"
    params, predict = _written(path, network, 2)
    for batch, *counts in ((1, 2, 2, 2), (3, 2, 4, 3)):
        edges = [unit * count for unit, count in zip(network.divisor, counts, strict=True)]
        x = np.random.default_rng(0).normal(size=(batch, *edges, 2)).astype(np.float32)
        expected = np.asarray(predict(params, x))
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(onnx_file.run(path, x), expected, atol=1e-5)


def test_it_gives_what_the_network_gives_on_a_real_scan(
    tmp_path: pathlib.Path, sample_dir: pathlib.Path
) -> None:
    """Where ONNX Runtime's own InstanceNormalization is wrong in the fourth digit."""
    network, path = (
        unet.UNetConfig(widths=(8, 16), blocks=1, last_blocks=1),
        tmp_path / "model.onnx",
    )
    params, predict = _written(path, network, 1)
    scan = prepare.unlabelled_case({"t1ce": min(sample_dir.glob("*/*_t1ce.nii.gz"))})
    case, _ = prepare.prepare_case(scan, spacing=(1.0, 1.0, 1.0))
    d, h, w = (edge // 2 * 2 for edge in case.image.shape[:3])
    x = case.image[None, :d, :h, :w].astype(np.float32)
    assert x[0, ..., 0].size > 90**3
    np.testing.assert_allclose(onnx_file.run(path, x), predict(params, x), atol=1e-5)


def test_the_file_says_what_it_is(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.onnx"
    _written(path, _NETWORKS["thick slices"], 2)
    held = onnx.load(path)
    assert {each.key: each.value for each in held.metadata_props} == {
        "modalities": "m0,m1",
        "outputs": ",".join(heads.Head(task_lib.DEFAULT, "softmax").outputs),
        "edges_divisible_by": "2,4,4",
    }
    (given,), (found,) = held.graph.input, held.graph.output
    sizes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (given, found)
    ]
    assert sizes == [["batch", count, "depth", "height", "width"] for count in (2, 4)]


def test_other_networks_and_a_missing_package_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    other = networks.of_family("plain_conv_unet", unet.UNetConfig(widths=(4, 8)))
    with pytest.raises(
        UserError, match=r"this network is a plain_conv_unet\. Give --formats=pytorch"
    ):
        onnx_file.check(other)
    importing = builtins.__import__

    def without(name: str, *args: object) -> object:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
        return importing(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="onnxruntime is not installed: pip install onnx"):
        onnx_file.check(unet.UNetConfig())


def test_the_command_writes_it(smoke_student: commands.Finished, tmp_path: pathlib.Path) -> None:
    words = [
        f"--checkpoint={smoke_student.folder}",
        "--formats=onnx",
        f"--output={tmp_path / 'out'}",
    ]
    done = commands.run("export", *words)
    assert done.returncode == 0, done.stderr
    assert "out/model.onnx: for ONNX Runtime, t1ce to background, " in done.stdout
    assert "`model.onnx`" in (tmp_path / "out/MODEL_CARD.md").read_text("utf-8")

"""The project's own U-Net as one ONNX file, for ONNX Runtime and what else reads the format.

    session = onnxruntime.InferenceSession("model.onnx")
    (probabilities,) = session.run(None, {"windows": windows})  # "b m d h w" -> "b k d h w" float32

Channels come first, as ONNX has them; what the channels m and k are, the file's metadata and the
`model.json` beside it say. Batch and edges are free; the edges must be divisible as in training.

The graph is made of operations of ONNX's opset 18 by hand, since no converter from JAX has 3-D
convolutions with free edges (`docs/interoperability.md`). It has no InstanceNormalization: ONNX
Runtime adds up a channel's voxels one after another in float32, and on a window of 96^3 the
probabilities are then off by 1e-3. Means along one axis after another are off by 3e-6.
"""

import pathlib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num, PyTree

from kdnet_jax.core import files
from kdnet_jax.errors import UserError
from kdnet_jax.models import layers, networks, unet

# The oldest in which ReduceMean takes its axes as an input, as later ones do; ONNX Runtime >= 1.14.
_OPSET, _IR_VERSION = 18, 8
_INPUT, _OUTPUT = "windows", "probabilities"
_SPACE = ("depth", "height", "width")


def check(network: networks.Network) -> None:
    """Raises UserError unless `write` can write the network, and `run` run it."""
    if not isinstance(network, unet.UNetConfig):
        raise UserError(
            f"--formats has onnx, which is for the project's own U-Net; this network is a "
            f"{networks.family(network)}. Give --formats=pytorch, whose class PyTorch's own "
            "exporter writes as ONNX (docs/interoperability.md)."
        )
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"--formats has onnx, but {error.name} is not installed: pip install onnx onnxruntime"
        ) from error


def write(
    path: pathlib.Path,
    network: unet.UNetConfig,
    params: PyTree,
    *,
    modalities: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Writes a U-Net as an ONNX file in float32, atomically.

    Args:
        path: the file.
        network: its form.
        params: its parameters.
        modalities: names of the sequences that it sees.
        outputs: names of what it gives the probabilities of.

    Raises:
        OSError: it cannot be written.
    """
    import onnx
    from onnx import helper

    graph = _Graph()
    last = _unet(graph, network, params["params"])
    final: tuple[str, dict[str, Any]] = (
        ("Sigmoid", {}) if network.head == "regions" else ("Softmax", {"axis": 1})
    )
    graph.nodes.append(helper.make_node(final[0], [last], [_OUTPUT], **final[1]))

    def volume(name: str, channels: int) -> Any:
        shape = ["batch", channels, *_SPACE]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "unet",
            [volume(_INPUT, len(modalities))],
            [volume(_OUTPUT, len(outputs))],
            [*graph.constants.values()],
        ),
        producer_name="kdnet_jax",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    divisor = ",".join(map(str, network.divisor))
    names = {"modalities": ",".join(modalities), "outputs": ",".join(outputs)}
    helper.set_model_props(model, names | {"edges_divisible_by": divisor})
    onnx.checker.check_model(model, full_check=True)
    with files.replacing(path) as beside:
        beside.write_bytes(model.SerializeToString())


def run(
    path: pathlib.Path, windows: Float[np.ndarray, "b d h w m"]
) -> Float[np.ndarray, "b d h w k"]:
    """Returns the probabilities of windows by a file that `write` wrote, in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = np.ascontiguousarray(np.moveaxis(windows, -1, 1), np.float32)
    found = typing.cast(np.ndarray, session.run([_OUTPUT], {_INPUT: given})[0])
    return np.moveaxis(found, 1, -1)


class _Graph:
    """Nodes and constants of a graph; values are known by their names."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def constant(self, name: str, value: Num[np.ndarray, "..."]) -> str:
        """Returns the name, under which the value is held once."""
        from onnx import numpy_helper

        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Returns the name of an operation's result."""
        from onnx import helper

        result = f"{operation}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [result], **attributes))
        return result


def _unet(graph: _Graph, config: unet.UNetConfig, params: Mapping[str, Any]) -> str:
    """Adds what `unet.UNet` computes, up to the logits."""

    def blocks(x: str, level: int, count: int, name: str) -> str:
        for index in range(count):
            x = _block(graph, x, params[f"{name}_{level}_{index}"], f"{name}_{level}_{index}")
        return x

    x, skips = _INPUT, []
    for level in range(len(config.widths)):
        if level:
            x = _down(graph, x, config, params, level)
        x = blocks(x, level, config.blocks, "encoder")
        skips.append(x)
    for level in reversed(range(len(config.widths) - 1)):
        x = graph.add("Concat", _up(graph, x, config, params, level), skips[level], axis=1)
        x = blocks(x, level, config.blocks if level else config.last_blocks, "decoder")
    return _convolution(graph, x, params["head"], "head")


def _block(graph: _Graph, x: str, params: Mapping[str, Any], name: str) -> str:
    """Adds `layers.Block`."""
    x = _convolution(graph, x, params["Conv_0"], name)
    epsilon = graph.constant("epsilon", np.full(1, layers.EPSILON, np.float32))
    scale, bias = (
        # "c" -> "c 1 1 1"
        graph.constant(
            f"{name}.{key}", np.asarray(params["InstanceNorm_0"][key])[:, None, None, None]
        )
        for key in ("scale", "bias")
    )
    centred = graph.add("Sub", x, _mean(graph, x))
    variance = _mean(graph, graph.add("Mul", centred, centred))
    deviation = graph.add("Sqrt", graph.add("Add", variance, epsilon))
    x = graph.add("Mul", centred, graph.add("Div", scale, deviation))
    return graph.add("LeakyRelu", graph.add("Add", x, bias), alpha=layers.SLOPE)


def _mean(graph: _Graph, x: str) -> str:
    """Adds the mean over the voxels, axis by axis: see the top of this file."""
    for axis in (4, 3, 2):
        axes = graph.constant(f"axis_{axis}", np.asarray([axis], np.int64))
        x = graph.add("ReduceMean", x, axes, keepdims=1)
    return x


def _convolution(
    graph: _Graph, x: str, params: Mapping[str, Any], name: str, stride: Sequence[int] = ()
) -> str:
    """Adds a convolution that keeps the size; or, of `stride`, one of `layers.space_to_depth`."""
    kernel = np.asarray(params["kernel"])
    if stride:
        # "1 1 1 (sd sh sw c) o" -> "sd sh sw c o"
        kernel = kernel.reshape(*stride, -1, kernel.shape[-1])
    # "kd kh kw c o" -> "o c kd kh kw"
    kernel = kernel.transpose(4, 3, 0, 1, 2)
    margins = [0 if stride else edge // 2 for edge in kernel.shape[2:]]
    weight = graph.constant(f"{name}.kernel", kernel)
    bias = graph.constant(f"{name}.convolution_bias", np.asarray(params["bias"]))
    return graph.add("Conv", x, weight, bias, strides=stride or (1, 1, 1), pads=2 * margins)


def _down(
    graph: _Graph, x: str, config: unet.UNetConfig, params: Mapping[str, Any], level: int
) -> str:
    stride = config.level_strides[level - 1]
    if config.down == "max_pool":
        return graph.add("MaxPool", x, kernel_shape=stride, strides=stride)
    name = f"down_{level}"
    return _convolution(graph, x, params[name], name, stride)


def _up(
    graph: _Graph, x: str, config: unet.UNetConfig, params: Mapping[str, Any], level: int
) -> str:
    stride = config.level_strides[level]
    if config.up == "trilinear":
        scales = graph.constant(f"scales_{level}", np.asarray([1, 1, *stride], np.float32))
        return graph.add(
            "Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel"
        )
    # `layers.depth_to_space` has a bias for each voxel of a block, a transposed convolution one for
    # each channel: so the biases are the weights of a further channel, of ones.
    own = params[f"up_{level}"]
    kernel, bias = (np.asarray(own[key]) for key in ("kernel", "bias"))
    # "c (sd sh sw o)" and "(sd sh sw o)" -> "c+1 sd sh sw o" -> "c+1 o sd sh sw"
    joined = np.concatenate([kernel[0, 0, 0], bias[None]])
    joined = joined.reshape(len(joined), *stride, -1).transpose(0, 4, 1, 2, 3)
    first = [
        graph.constant(name, np.asarray([value], np.int64))
        for name, value in (("zero", 0), ("one", 1))
    ]
    channel = graph.add("Slice", x, *first, graph.constant("channels", np.asarray([1], np.int64)))
    ones = graph.add(
        "Add",
        graph.add("Mul", channel, graph.constant("no", np.zeros(1, np.float32))),
        graph.constant("whole", np.ones(1, np.float32)),
    )
    weight = graph.constant(f"up_{level}.kernel", joined)
    return graph.add("ConvTranspose", graph.add("Concat", x, ones, axis=1), weight, strides=stride)

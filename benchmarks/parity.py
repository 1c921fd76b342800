"""How far our networks are from PyTorch's with the same weights: python -m benchmarks.parity.

    pip install -r requirements-benchmarks.txt
    python -m benchmarks.parity [--only=CLASS,...] [--json=FILE] [--quick] [--rounding]

Each network is nnU-Net's or MONAI's own class with random weights, scales and biases. Its state
dict becomes our parameters, both see the same random input, and what each convolution gives is
compared, float32. "layers" is the largest absolute difference of any of them; of that layer "value"
is the largest absolute value and, with --rounding, "rounding" how far PyTorch's float32 is from its
own float64, which takes minutes for the networks of full width.
"logits" is the logits' difference. "back" is that of a fresh network of the class with our
parameters written back by `load_state_dict(strict=True)`, against the first. Exits 1 if the logits
are 1e-4 or more apart, or a layer 1e-4 of its largest value (of 1, if that is larger).
"""

import dataclasses
import operator
import sys
from collections.abc import Iterable

import tqdm
from absl import flags

from benchmarks import measuring, parity_cases, records
from kdnet_jax import cli, errors
from kdnet_jax.core import files
from kdnet_jax.interop import network_kinds
from kdnet_jax.models import layers, unet

LIMIT = 1e-4
_MODULES = {
    "PlainConvUNet": "dynamic_network_architectures",
    "ResidualEncoderUNet": "dynamic_network_architectures",
    "DynUNet": "monai",
    "SegResNet": "monai",
}
_ONLY = flags.DEFINE_list("only", None, "Classes; by default all.")
# Tests import this file beside another benchmark that defines the same flag.
_JSON = flags.DEFINE_string("json", None, "Also write the rows here.", allow_override=True)
_QUICK = flags.DEFINE_bool("quick", False, "Leave the networks of full width out.")
_ROUNDING = flags.DEFINE_bool("rounding", False, "Also PyTorch's own rounding; slow.")
_FORM = flags.DEFINE_string("convolutions", "auto", "See model.convolutions.")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        network: name of the PyTorch class.
        setting: what is special.
        input: channels and edges.
        layers: how many were compared.
        largest: the largest difference of any layer.
        where: our path of that layer.
        value: the largest absolute value in it.
        rounding: how far PyTorch's float32 is from its float64 in it, if asked for.
        relative: the largest difference of any layer as a share of its largest value, or of 1.
        logits: the largest difference of the logits.
        back: that of the weights written back.
    """

    network: str
    setting: str
    input: str
    layers: int
    largest: float
    where: str
    value: float
    rounding: float | None
    relative: float
    logits: float
    back: float


def compare(case: parity_cases.Case, form: str = "auto", rounding: bool = False) -> Row:
    """Returns how far the two sides of a case are apart.

    Args:
        case: the network and its input.
        form: of our convolutions.
        rounding: also run PyTorch in float64.
    """
    # Needs the optional packages.
    import torch

    from benchmarks import parity_peers

    torch.manual_seed(0)
    weights = network_kinds.of_config(case.config).weights
    config = dataclasses.replace(case.config, convolutions=form)
    peer, x = parity_peers.make(case), parity_peers.image(case)
    params = weights.from_torch(config, parity_peers.state(peer), case.channels)
    theirs = parity_peers.their_layers(case, peer, x)
    apart = parity_peers.differences(parity_peers.our_layers(config, params, x), theirs)
    again = parity_peers.make(case)
    state = {name: torch.from_numpy(y) for name, y in weights.to_torch(config, params).items()}
    again.load_state_dict(state, strict=True)
    back = parity_peers.differences(parity_peers.their_layers(case, again, x), theirs)
    where = max(apart, key=lambda path: apart[path])
    rounded = None
    if rounding:
        exact = parity_peers.their_layers(case, peer.double(), x.astype("float64"))
        rounded = parity_peers.differences(theirs, exact)[where]
    values = {path: float(abs(y).max()) for path, y in theirs.items()}
    return Row(
        network=case.network,
        setting=case.setting,
        input=f"{case.channels} x {' x '.join(map(str, case.edges))}",
        layers=len(apart) - 1,
        largest=apart[where],
        where=where,
        value=values[where],
        rounding=rounded,
        relative=max(apart[path] / max(values[path], 1) for path in apart),
        logits=apart[parity_peers.LOGITS],
        back=max(back.values()),
    )


def table(rows: Iterable[Row]) -> str:
    """Returns the Markdown table."""
    head = (
        "| network | setting | input | convolutions | layers | value | rounding | logits | back |"
    )
    lines = [head, "|---" * 9 + "|"]
    for row in rows:
        cells = [row.network, row.setting, row.input, str(row.layers), f"{row.largest:.1e}"]
        rounding = "-" if row.rounding is None else f"{row.rounding:.1e}"
        cells += [f"{row.value:.3g}", rounding, f"{row.logits:.1e}", f"{row.back:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Checks, compares, prints, writes."""
    cli.refuse_arguments(argv)
    errors.check_choice("--convolutions", _FORM.value, ("auto", *layers.FORMS))
    records.check_writable(_JSON.value, "--json")
    names = _ONLY.value or list(_MODULES)
    for name in names:
        errors.check_choice("--only", name, _MODULES)
    measuring.check_peers("torch", *sorted({_MODULES[name] for name in names}))
    cases = parity_cases.small() + ([] if _QUICK.value else parity_cases.real())
    cases = [case for case in cases if case.network in names]
    progress = tqdm.tqdm(cases, desc="networks", file=sys.stderr)
    rows = [compare(case, _FORM.value, _ROUNDING.value) for case in progress]
    print(table(rows))
    print("\n" + _said(rows))
    if _JSON.value:
        files.write_text(_JSON.value, records.to_json(rows, records.facts()))
    if max(max(row.relative, row.logits) for row in rows) >= LIMIT:
        raise SystemExit(1)


def _said(rows: list[Row]) -> str:
    largest, logits, relative = (
        max(rows, key=operator.attrgetter(name)) for name in ("largest", "logits", "relative")
    )
    config = dataclasses.replace(parity_cases.small()[0].config, convolutions=_FORM.value)
    return (
        f"Largest difference of a layer: {largest.largest:.1e} ({largest.network}, "
        f"{largest.setting}, at {largest.where}); of logits: {logits.logits:.1e}; of a layer as a "
        f"share of its largest value: {relative.relative:.1e}. {unet.describe(config)}"
    )


if __name__ == "__main__":
    cli.run(main)

"""How time and memory of a training step grow: python -m benchmarks.growth --json=FILE --plot=PNG.

A float32 step of the U-Net (4 channels, no augmentation) beside PyTorch's, channels last, one size
at a time changed: the patch's edge, the batch, the network's width, and for ours the number of
training cases, whose batches are cut on the device. Each point is measured in processes of its own;
memory is what a process holds at most beyond its libraries, ours with its compilation. The whole
takes about 10 minutes on 2 quiet cores.
"""

import json
import pathlib

from absl import flags

from benchmarks import growth_plot, growth_points, measuring, records
from kdnet_jax import cli
from kdnet_jax.core import files

_JSON = flags.DEFINE_string("json", None, "Write the points here.", required=True)
_PLOT = flags.DEFINE_string("plot", None, "Draw them here, PNG.")
_QUICK = flags.DEFINE_bool("quick", False, "Tiny sizes: shows that it runs, and no growth.")
_PEER = flags.DEFINE_bool("peer", True, "Measure PyTorch too.")
_CORES = flags.DEFINE_integer("cores", 2, "Cores, and threads, of each side.")
_ROOT = flags.DEFINE_string("root", "datasets", "Folder of built datasets.")


def main(argv: list[str]) -> None:
    """Checks, measures, draws, writes."""
    cli.refuse_arguments(argv)
    measuring.check_machine(_CORES.value)
    if _PEER.value:
        measuring.check_peers("torch")
    records.check_writable(_JSON.value, "--json")
    records.check_writable(_PLOT.value, "--plot")
    found = growth_points.measure(_CORES.value, _QUICK.value, _PEER.value, _ROOT.value)
    text = json.dumps({"about": records.facts(), "points": found}, indent=1)
    files.write_text(_JSON.value, text + "\n")
    if _PLOT.value:
        growth_plot.draw(found, pathlib.Path(_PLOT.value))
    for axis, values in found.items():
        for point in values:
            sides = [
                f"{side} {point[f'{side}_seconds']:.3g} s, {point[f'{side}_gib']:.2f} GiB"
                for side in ("ours", "peer")
                if f"{side}_seconds" in point
            ]
            print(f"{axis} {point[axis]}: {'; '.join(sides)}")


if __name__ == "__main__":
    cli.run(main)

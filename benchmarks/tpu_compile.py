"""Whether the programs of a preset fit on TPUs, by compilation: python -m benchmarks.tpu_compile.

    pip install libtpu && JAX_PLATFORMS=cpu python -m benchmarks.tpu_compile --json=tpu.json

needs no TPU and runs nothing: libtpu compiles for chips that are only described. A row for each
program, topology, batch and form of the first convolution: the memory that XLA plans on each chip
(`memory.step_bytes`, of the memory that its compiler allows where it refuses), the floating-point
operations and bytes that XLA counts, and what the chips send each other. A program of `:brats`
takes two cores many minutes; the JSON is written after each row, and the same command goes on.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
from typing import Any

from absl import flags

from benchmarks import records, tpu_programs
from kdnet_jax import cli
from kdnet_jax.core import documents, files, provenance

_FILE = flags.DEFINE_string("json", None, "Also write the rows here, and go on from those in it.")
_PRESET = flags.DEFINE_string("preset", "brats", "Sizes: a preset of the configs.")
_PROGRAMS = flags.DEFINE_multi_enum(
    "program", [*tpu_programs.PROGRAMS], [*tpu_programs.PROGRAMS], "What is compiled."
)
_TOPOLOGIES = flags.DEFINE_list("topologies", "v5e:1x1,v5e:2x2,v5e:4x4,v6e:1x1", "For what.")
_BATCHES = flags.DEFINE_list("batches", "1,2", "Samples, or windows, on each chip.")
_AUGMENT = flags.DEFINE_string("augment", "", "augment.preset of the steps; empty: the preset's.")
_FORMS = flags.DEFINE_list("forms", "native,blocks", "Of model.convolutions.")


def main(argv: list[str]) -> None:
    """Compiles what the flags name, prints and writes the rows."""
    cli.refuse_arguments(argv)
    records.check_writable(_FILE.value, "--json")
    path = pathlib.Path(_FILE.value) if _FILE.value else None
    rows: list[tpu_programs.Row] = []
    if path and path.exists():
        rows = [tpu_programs.Row(**each) for each in documents.read_object(path)["rows"]]
    done = {row.key for row in rows}
    wanted = [
        (program, topology, form, int(batch), _AUGMENT.value)
        for topology in _TOPOLOGIES.value
        for program in _PROGRAMS.value
        for form in _FORMS.value
        for batch in _BATCHES.value
    ]
    for key in wanted:
        if key in done:
            continue
        rows.append(tpu_programs.compile_row(*key, _PRESET.value))
        print(rows[-1].text(), flush=True)
        if path:
            files.write_text(path, json.dumps(_document(rows), indent=1) + "\n")


def _document(rows: list[tpu_programs.Row]) -> dict[str, Any]:
    libtpu = importlib.metadata.version("libtpu")
    about = provenance.collect() | {"libtpu": libtpu, "preset": _PRESET.value}
    return {"about": about, "rows": [dataclasses.asdict(row) for row in rows]}


if __name__ == "__main__":
    cli.run(main)

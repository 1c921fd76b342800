"""Hands a model over: python -m kdnet_jax.export --checkpoint=RUN --output=DIR.

Writes a folder that `predict`, `kdnet_jax.load` and `--config.teacher.checkpoint` take as they take
the run, and that needs nothing of it: the parameters alone, `model.json`, a model card, and the
forms that --formats asks for. What nnU-Net or MONAI trained can be given too.
`docs/interoperability.md` says how each form is used elsewhere.
"""

import pathlib

from absl import flags

from kdnet_jax import cli
from kdnet_jax.errors import UserError, check_choice

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a run; or what nnU-Net or MONAI trained", required=True
)
_FOLDS = flags.DEFINE_list("folds", [], "Of nnU-Net's: the folds to be averaged; by default all")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to be written, a new one", required=True)
_FORMATS = flags.DEFINE_list(
    "formats",
    ["jax"],
    "Forms besides the Orbax checkpoint, with commas: jax (a jax.export artifact for cpu, cuda and "
    "tpu), onnx (for ONNX Runtime), pytorch (for nnU-Net's or MONAI's own class), huggingface (the "
    "model card as README.md, with the metadata of the Hugging Face Hub), docker (a Dockerfile and "
    "what its image needs); empty for none",
)
_LICENCE = flags.DEFINE_string(
    "licence", "", "Licence of the parameters, for the model card, such as CC-BY-4.0"
)


def main(argv: list[str]) -> None:
    """Exports what the flags name."""
    cli.refuse_arguments(argv)
    output = pathlib.Path(_OUTPUT.value)
    if output.exists():
        raise UserError(f"--output={output} is there already: give a new folder.")
    if not _LICENCE.value.isprintable():  # as bytes that are no UTF-8 are not
        raise UserError(f"--licence is {_LICENCE.value!r}: give one line of printable text.")
    # Imported here: mistakes in the flags are reported before the seconds that this takes.
    from kdnet_jax.interop.export import hand_over

    for name in _FORMATS.value:
        check_choice("--formats", name, hand_over.FORMATS)
    package = hand_over.gather(
        pathlib.Path(_CHECKPOINT.value), tuple(_FOLDS.value), _LICENCE.value, _FORMATS.value
    )
    for line in hand_over.write(package, output, _FORMATS.value):
        print(line)


if __name__ == "__main__":
    cli.run(main)

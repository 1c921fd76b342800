"""Our speed and memory beside PyTorch's and MONAI's: python -m benchmarks.speed [--json=FILE].

    pip install -r requirements-benchmarks.txt
    python -m benchmarks.speed [--only=NAME,...] [--json=FILE] [--quick]

Rows, on --cores cores (2), float32, with the same network, batch and data on both sides:

- training_step_narrow, _wide: a step of the U-Net on 2 patches of 64^3 with 4 channels, Adam,
  clipping, Dice + cross-entropy; widths 8..128 and 16..256. Peer: PyTorch, the faster layout;
  with --torch_compile the fastest of four, two of them compiled.
- distillation_step_narrow, _wide: a student on 1 channel with a teacher of its widths on 4. Peer:
  our own plain step of the student.
- cached_teacher_narrow, _wide: the same student with that teacher's probabilities in the batch, not
  the teacher. Peer: our own plain step.
- four_students_narrow, _wide: students on each of the 4 channels in one step, with that teacher.
  Peer: four times the distillation step of one.
- prediction: a scan of 240x240x155 by windows of 128^3 that overlap by half, narrow network. Peer:
  MONAI's SlidingWindowInferer, the faster layout and number of windows at once.
- prediction_bfloat16 (only on a processor that has it): the same in bfloat16. Peer: MONAI under
  PyTorch's autocast.
- quarter_width: that scan and those windows, by widths 4..64. Peer: our own of 16..256.
- training_memory_narrow, _wide: what a training process holds at most beyond its libraries, our
  compilation included.
- compilation_cold, _cached: of the student's step of the preset :brats, in a fresh process.

Both sides of a timed row take turns, repetition by repetition, each in a process of its own; the
first round is left out. A row holds medians and every single time. The whole takes 12 to 27 minutes
on 2 quiet cores; a row during which other processes were busy says so. How long the step waits for
data is measured by `benchmarks.input`.
"""

from collections.abc import Sequence

from absl import flags

from benchmarks import measuring, records, speed_cases
from kdnet_jax import cli, errors
from kdnet_jax.core import files

_JSON = flags.DEFINE_string("json", None, "Also write the rows here.")
_ONLY = flags.DEFINE_list("only", None, "Names of rows; by default all.")
_QUICK = flags.DEFINE_bool("quick", False, "Tiny sizes: shows that all rows run, and no speed.")
_CORES = flags.DEFINE_integer("cores", 2, "Cores, and threads, of each side.")
_COMPILE = flags.DEFINE_bool("torch_compile", False, "PyTorch's training by torch.compile, too.")
_REPETITIONS = flags.DEFINE_integer("repetitions", None, "Of each timed row; by default 5.", 1)


def choose_rows(only: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Returns the rows to measure, in the table's order.

    Raises:
        UserError: for a name that is no row.
    """
    for name in only or ():
        errors.check_choice("--only", name, known)
    return [name for name in known if not only or name in only]


def main(argv: list[str]) -> None:
    """Checks, measures, prints, writes."""
    cli.refuse_arguments(argv)
    changes = {"cores": _CORES.value, "torch_compile": _COMPILE.value}
    changes |= speed_cases.QUICK if _QUICK.value else {}
    if _REPETITIONS.value:
        changes["repetitions"] = _REPETITIONS.value
    cases = speed_cases.cases(speed_cases.Sizes(**changes))
    names = choose_rows(_ONLY.value, list(cases))
    measuring.check_machine(_CORES.value)
    records.check_writable(_JSON.value, "--json")
    measuring.check_peers(*speed_cases.needed_modules(names))
    about = records.facts()
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    rows = []
    for name in names:
        rows.append(cases[name]())
        print(records.text(rows[-1]), flush=True)
        # After every row: what is measured is kept if a later one fails.
        if _JSON.value:
            files.write_text(_JSON.value, records.to_json(rows, about))
    if _QUICK.value:
        print("--quick: the sizes are tiny, so these figures say nothing about speed.")


if __name__ == "__main__":
    cli.run(main)

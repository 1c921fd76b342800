"""The programs of `benchmarks.tpu_compile`, compiled for chips that are only described."""

import collections
import dataclasses
import importlib
import re
import time

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from benchmarks import collectives
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import reading
from kdnet_jax.core import memory
from kdnet_jax.errors import UserError
from kdnet_jax.experiment import compilation
from kdnet_jax.models import networks
from kdnet_jax.parallel import sharding
from kdnet_jax.prediction import inference
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import trained

# Program -> the role whose config it is of.
PROGRAMS = {"supervised": "teacher", "distillation": "student", "prediction": "student"}
_USED = re.compile(r"(?:Used |HLO temporaries \()([\d.]+)G")


@dataclasses.dataclass(frozen=True)
class Row:
    """A program that was compiled, or was not.

    Attributes:
        program: of `PROGRAMS`.
        topology: the chips, such as "v5e:2x2".
        form: of the first convolution.
        batch: samples or windows on each chip.
        augment: `augment.preset` of a step, where it is not that of the config's preset.
        fits: the compiler found room for it; None: it failed for another reason.
        gib: what it holds on each chip at most; where it does not fit, what the compiler counted.
        tera_flops: of one chip, as XLA counts; likewise `accessed_gib`, bytes read and written.
        sent_mib: kind of collective -> what each chip receives.
        seconds: of the compilation.
        error: where it does not fit, or failed, what the compiler says.
    """

    program: str
    topology: str
    form: str
    batch: int
    fits: bool | None
    gib: float | None = None
    tera_flops: float | None = None
    accessed_gib: float | None = None
    sent_mib: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    augment: str = ""

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What the row is of."""
        return self.program, self.topology, self.form, self.batch, self.augment

    def text(self) -> str:
        """Returns the row for the terminal."""
        said = f"{self.program}, {self.topology}, {self.form}, {self.batch} a chip"
        said += f", augment.preset={self.augment}: " if self.augment else ": "
        said += {True: "fits", False: "DOES NOT FIT", None: "NOT COMPILED"}[self.fits]
        if self.gib is not None:
            said += f", {self.gib:.2f} GiB"
        if self.tera_flops is not None and self.accessed_gib is not None:
            said += f", {self.tera_flops:.2f} TFLOP, {self.accessed_gib:.1f} GiB read and written"
        sent = ", ".join(f"{kind} {mib:.1f} MiB" for kind, mib in self.sent_mib.items())
        return f"{said}{', ' + sent if sent else ''} ({self.seconds:.0f} s){' ' + self.error}"


def experiment(
    role: str, preset: str, form: str, batch: int, augment: str = ""
) -> experiment_lib.Experiment:
    """Returns the experiment of a role's config as a TPU would have it.

    Args:
        role: such as "student".
        preset: of the config.
        form: `model.convolutions`; "auto" would be that of this machine, as would `bfloat16`.
        batch: samples in all.
        augment: `augment.preset`; "": that of the config's preset.
    """
    config = importlib.import_module(f"configs.{role}").get_config(preset)
    config.model.convolutions, config.model.bfloat16 = form, "true"
    config.loader.batch = batch
    if augment:
        config.augment.preset = augment
    return reading.read(config)


def mesh_of(topology: str) -> Mesh:
    """Returns the mesh of a topology's chips, all on the data axis.

    Raises:
        UserError: libtpu is not installed, or knows no such topology.
    """
    try:
        chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{topology} cannot be compiled for ({str(error).splitlines()[0]}). Install libtpu "
            "(pip install libtpu), and give topologies that it knows, such as v5e:2x2."
        ) from error
    axes = (sharding.DATA, sharding.SPACE)
    return Mesh(np.array(chips).reshape(-1, 1), axes, axis_types=(AxisType.Auto,) * 2)


def lower(
    program: str, preset: str, form: str, batch: int, mesh: Mesh, augment: str = ""
) -> jax.stages.Lowered:
    """Lowers a program of `PROGRAMS` for the chips of a mesh.

    Args:
        program: which.
        preset: of the configs.
        form: of the first convolution.
        batch: samples or windows on each chip.
        mesh: the chips.
        augment: see `experiment`.
    """
    batch *= mesh.shape[sharding.DATA]
    given = experiment(PROGRAMS[program], preset, form, batch, augment)
    model = model_lib.of_experiment(given)
    if program == "prediction":
        predict = inference.make_predict(
            networks.function(model.network), model.head, model.mirror, mesh=mesh
        )
        windows = (batch, *model.window, len(model.modalities))
        return predict.lower(
            trained.expected_params(model), jax.ShapeDtypeStruct(windows, np.float32)
        )
    teacher = None
    if program == "distillation":
        teacher = model_lib.of_experiment(experiment("teacher", preset, form, batch))
    return compilation.lower_step([given], mesh, batch, teacher)


def compile_row(
    program: str, topology: str, form: str, batch: int, augment: str, preset: str
) -> Row:
    """Compiles a program and returns its row."""
    lowered = lower(program, preset, form, batch, mesh_of(topology), augment)
    row = Row(program, topology, form, batch, fits=False, augment=augment)
    started = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = _USED.search(str(error))
        return dataclasses.replace(
            row,
            fits=False if memory.is_exhausted(error) else None,
            gib=float(used[1]) if used else None,
            seconds=time.monotonic() - started,
            error=str(error).splitlines()[0],
        )
    sent = collections.Counter[str]()
    for array in collectives.of_program(compiled.as_text() or ""):
        sent[array.kind] += array.bytes
    counted = compiled.cost_analysis()
    assert counted is not None  # TPUs have one
    return dataclasses.replace(
        row,
        fits=True,
        gib=memory.step_bytes(compiled) / 2**30,
        tera_flops=counted["flops"] / 1e12,
        accessed_gib=counted["bytes accessed"] / 2**30,
        sent_mib={kind: size / 2**20 for kind, size in sent.items()},
        seconds=time.monotonic() - started,
    )

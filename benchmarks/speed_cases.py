"""The rows of `benchmarks.speed`: what is measured against what, and what was asked for."""

import dataclasses
import functools
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks import measuring, records
from kdnet_jax.models.kernels import build

LAYOUTS = ("contiguous", "channels_last")
NARROW, WIDE = (8, 16, 32, 64, 128), (16, 32, 64, 128, 256)
Widths = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        narrow: the network whose rows end in "_narrow", and the one that predicts.
        wide: the network whose rows end in "_wide": KD-Net's.
        edge: of the patches of a step, voxels.
        batch: patches of a step.
        scan: "d h w" of the predicted scan, voxels.
        window: edges of the sliding window, voxels.
        overlap: share of a window that its neighbour covers too.
        preset: of the student whose step is compiled.
        repetitions: of every timed row.
        compilations: without a cache.
        cores: of each side.
        torch_compile: PyTorch's training steps by torch.compile, too.
    """

    narrow: Widths = NARROW
    wide: Widths = WIDE
    edge: int = 64
    batch: int = 2
    scan: tuple[int, int, int] = (155, 240, 240)
    window: tuple[int, int, int] = (128, 128, 128)
    overlap: float = 0.5
    preset: str = "brats"
    repetitions: int = 5
    compilations: int = 3
    cores: int = 2
    torch_compile: bool = False


QUICK = {
    "narrow": (4, 8),
    "wide": (4, 8, 16),
    "edge": 16,
    "scan": (20, 40, 24),
    "window": (16, 16, 16),
    "preset": "smoke",
    "repetitions": 2,
    "compilations": 1,
}


def _step_options(sizes: Sizes, widths: Widths) -> dict[str, Any]:
    return {"widths": widths, "edge": sizes.edge, "batch": sizes.batch}


def _others(workers: Mapping[str, measuring.Worker]) -> list[float]:
    return [share for worker in workers.values() for share in worker.others]


def training_step(name: str, sizes: Sizes, widths: Widths) -> records.Row:
    """Our step against PyTorch's, the fastest of its layouts."""
    options = _step_options(sizes, widths)
    places = {"ours": ("speed_ours:training_step", options)}
    for layout in LAYOUTS:
        given = {"layout": layout, "threads": sizes.cores, **options}
        places[layout] = ("speed_peer:training_step", given)
        if sizes.torch_compile:
            compiled = given | {"compiled": True}
            places[f"{layout}, compiled"] = ("speed_peer:training_step", compiled)
    with measuring.workers(places, sizes.cores) as workers:
        seconds = measuring.take_turns(workers, sizes.repetitions, name)
        others, about = _others(workers), workers["ours"].about
        faults = {f"{key}_page_faults": worker.faults for key, worker in workers.items()}
    ours = seconds.pop("ours")
    layout = measuring.fastest(seconds)
    medians = {f"peer_{key}_seconds": statistics.median(all_) for key, all_ in seconds.items()}
    return records.make_row(
        name,
        "s",
        0.50 if widths == sizes.narrow else 0.42,
        ours,
        seconds[layout],
        peer_name=f"PyTorch, {layout}",
        others=others,
        notes={**options, **medians, **faults, **about},
    )


def distillation_step(name: str, sizes: Sizes, widths: Widths) -> records.Row:
    """The student's step with a teacher of equal widths against the student's alone."""
    return _beside_our_own(
        name, sizes, widths, 1.25, ("distillation_step", "student_plain_step"), "our plain step"
    )


def cached_teacher(name: str, sizes: Sizes, widths: Widths) -> records.Row:
    """The student's step with its teacher's probabilities in the batch against the plain step."""
    jobs = ("cached_step", "student_plain_step")
    return _beside_our_own(name, sizes, widths, 1.05, jobs, "our plain step")


def four_students(name: str, sizes: Sizes, widths: Widths) -> records.Row:
    """Four students in one step against the steps of four runs."""
    jobs, peer = ("joint_step", "distillation_step"), "four times our step of one"
    return _beside_our_own(name, sizes, widths, 0.8, jobs, peer, times=4)


def _beside_our_own(
    name: str,
    sizes: Sizes,
    widths: Widths,
    goal: float,
    jobs: tuple[str, str],
    peer_name: str,
    times: int = 1,
) -> records.Row:
    """Returns the row of a step of ours against another one, `times` of which do its work."""
    options = _step_options(sizes, widths)
    places = {job: (f"speed_ours:{job}", options) for job in jobs}
    return _in_turns(name, sizes, goal, places, peer_name, options, times)


def _in_turns(
    name: str,
    sizes: Sizes,
    goal: float,
    places: Mapping[str, tuple[str, dict[str, Any]]],
    peer_name: str,
    notes: dict[str, Any],
    times: int = 1,
) -> records.Row:
    """Returns the row of the first of two places against `times` the second."""
    with measuring.workers(places, sizes.cores) as workers:
        seconds = measuring.take_turns(workers, sizes.repetitions, name)
        others = _others(workers)
    ours, peer = (seconds[key] for key in places)
    peer = [times * each for each in peer]
    return records.make_row(
        name, "s", goal, ours, peer, peer_name=peer_name, others=others, notes=notes
    )


def prediction(name: str, sizes: Sizes, bfloat16: bool) -> records.Row:
    """Our sliding window against MONAI's, with the same parameters on the same scan.

    With `bfloat16` both networks multiply in it, the peer's by PyTorch's autocast.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "params.pickle")
        measuring.once("speed_ours:save_params", sizes.cores, path=path, widths=sizes.narrow)
        shared = {
            "path": path,
            "widths": sizes.narrow,
            "patch": sizes.window,
            "overlap": sizes.overlap,
            "bfloat16": bfloat16,
        }
        threads = {"threads": sizes.cores}
        chosen = measuring.once("speed_peer:choose_prediction", sizes.cores, **shared, **threads)
        given = shared | {"shape": sizes.scan}
        form = {key: chosen[key] for key in ("layout", "batch")}
        places = {
            "ours": ("speed_ours:prediction", given),
            "monai": ("speed_peer:prediction", given | threads | form),
        }
        with measuring.workers(places, sizes.cores) as workers:
            seconds = measuring.take_turns(workers, sizes.repetitions, name)
            others, about = _others(workers), workers["ours"].about
            ours, (peer, windows) = workers["ours"].result(), workers["monai"].result()
    del shared["path"]
    return records.make_row(
        name,
        "s",
        0.28,
        seconds["ours"],
        seconds["monai"],
        peer_name=f"MONAI, {chosen['layout']}, {chosen['batch']} windows at once",
        others=others,
        notes={
            "scan": sizes.scan,
            **shared,
            "peer_tried_seconds": chosen["tried_seconds"],
            "windows_ours": about["windows"],
            "windows_peer": windows,
            "window_starts_ours": about["starts"],
            **agreement(ours, peer),
        },
    )


def quarter_width(name: str, sizes: Sizes) -> records.Row:
    """The sliding window of the wide network with a quarter of its channels against the whole."""
    quarter = tuple(width // 4 for width in sizes.wide)
    windows = {"shape": sizes.scan, "patch": sizes.window, "overlap": sizes.overlap}
    with tempfile.TemporaryDirectory() as folder:
        places = {}
        for key, widths in (("quarter", quarter), ("whole", sizes.wide)):
            options = {"path": str(pathlib.Path(folder) / f"{key}.pickle"), "widths": widths}
            measuring.once("speed_ours:save_params", sizes.cores, **options)
            places[key] = ("speed_ours:prediction", options | windows)
        peer_name = f"our network of widths {sizes.wide}"
        return _in_turns(name, sizes, 0.4, places, peer_name, {"widths": quarter, **windows})


def agreement(
    ours: Float[np.ndarray, "d h w k"], peer: Float[np.ndarray, "d h w k"]
) -> dict[str, float]:
    """Returns how alike two predictions are.

    The middle windows may lie some voxels apart (ours are spread evenly, MONAI's last one is moved
    back to fit), which alone makes probabilities differ.
    """
    a, b = ours.argmax(-1), peer.argmax(-1)
    found = sorted(set(np.unique(a)) | set(np.unique(b)))
    dice = [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in found]
    difference = np.abs(ours - peer)
    return {
        "same_class_share": float((a == b).mean()),
        "least_dice_of_a_class": float(min(dice)),
        "mean_difference": float(difference.mean()),
        "largest_difference": float(difference.max()),
    }


def training_memory(name: str, sizes: Sizes, widths: Widths) -> records.Row:
    """Peak memory of a process that trains, against PyTorch's thriftier layout."""
    options = _step_options(sizes, widths) | {"repetitions": 3}
    ours = measuring.once("speed_ours:training_memory", sizes.cores, **options)
    peer = {
        layout: measuring.once(
            "speed_peer:training_memory",
            sizes.cores,
            **options,
            layout=layout,
            threads=sizes.cores,
        )["peak_gib"]
        for layout in LAYOUTS
    }
    layout = min(peer, key=peer.__getitem__)
    return records.make_row(
        name,
        "GiB",
        0.85,
        [ours["peak_gib"]],
        [peer[layout]],
        peer_name=f"PyTorch, {layout}",
        notes=options
        | {f"peer_{key}_gib": value for key, value in peer.items()}
        | {f"ours_{key}": ours[key] for key in ("build_gib", "steps_gib", "compiled_gib")},
    )


def compilation(name: str, sizes: Sizes, cached: bool) -> records.Row:
    """Seconds until the student's step is ready in a fresh process."""

    def compile_in(folder: str) -> dict[str, Any]:
        place = "speed_ours:compile_student"
        return measuring.once(place, sizes.cores, cache=folder, preset=sizes.preset)

    if cached:
        with tempfile.TemporaryDirectory() as folder:
            compile_in(folder)
            found = [compile_in(folder) for _ in range(sizes.repetitions)]
    else:
        found = []
        for _ in range(sizes.compilations):
            with tempfile.TemporaryDirectory() as folder:
                found.append(compile_in(folder))
    return records.make_row(
        name,
        "s",
        5.0 if cached else 45.0,
        [each["seconds"] for each in found],
        goal_of="ours",
        notes={
            "config": f"configs/student.py:{sizes.preset}",
        },
    )


def cases(sizes: Sizes) -> dict[str, Callable[[], records.Row]]:
    """Returns every row by its name."""
    made: dict[str, Callable[[], records.Row]] = {}

    def add(name: str, measure: Callable[..., records.Row], *values: Any) -> None:
        made[name] = functools.partial(measure, name, sizes, *values)

    def add_both(name: str, measure: Callable[..., records.Row]) -> None:
        add(f"{name}_narrow", measure, sizes.narrow)
        add(f"{name}_wide", measure, sizes.wide)

    for measure in (training_step, distillation_step, cached_teacher, four_students):
        add_both(measure.__name__, measure)
    add("prediction", prediction, False)
    if build.has_bfloat16():
        add("prediction_bfloat16", prediction, True)
    add("quarter_width", quarter_width)
    add_both("training_memory", training_memory)
    add("compilation_cold", compilation, False)
    add("compilation_cached", compilation, True)
    return made


def needed_modules(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the peers' packages that rows of these names import."""
    if any(name.startswith("prediction") for name in names):
        return ("torch", "monai")
    return ("torch",) if any(name.startswith("training") for name in names) else ()

"""Brains out of heads, by a tool that the user has installed: HD-BET or SynthStrip.

The tool gets the scan alone, without a header that names anybody, in a temporary folder.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Num

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import geometry, grids, intensities, nifti, prepare, spaces
from kdnet_jax.errors import UserError, check_choice

# In the order in which "auto" looks for them; the wrappers of SynthStrip's container take the same
# words as FreeSurfer's command.
COMMANDS: Final = {
    "hd-bet": ("hd-bet",),
    "synthstrip": ("mri_synthstrip", "synthstrip-docker", "synthstrip-singularity"),
}
CHOICES: Final = ("auto", *COMMANDS)
_SCAN = "scan.nii.gz"
# More of a volume than this is no brain in a head.
_MOST: Final = 0.95
_LAST_LINES: Final = 8  # of what a tool that failed has said
_ELSEWHERE: Final = (
    "strip the scan yourself and give the stripped file (with --dicom=SERIES for a DICOM SEG)"
)


@dataclasses.dataclass(frozen=True)
class Stripper:
    """A tool that is installed.

    Attributes:
        name: its name in `CHOICES`.
        command: the program.
        words: its arguments, paths in the folder that holds `_SCAN` as "{}/FILE".
        mask: the file of that folder that it writes.
    """

    name: str
    command: str
    words: tuple[str, ...]
    mask: str


def find(asked: str, task: task_lib.Task, modalities: Iterable[str]) -> Stripper:
    """Returns the tool, which was started once to see that it works.

    Args:
        asked: one of `CHOICES`; "auto": the first that is installed.
        task: what is segmented.
        modalities: the network's sequences.

    Raises:
        UserError: the network was trained with the skull on, or no such tool is installed or it
            does not start.
    """
    check_choice("--strip", asked, CHOICES)
    for each in map(task.channel, modalities):
        if each.normalisation != "zscore_nonzero":
            raise UserError(
                f"--strip: this network takes scans with their skull on: {each.name} is normalised "
                f'by "{each.normalisation}", stripped scans are by "zscore_nonzero". Leave out '
                "--strip."
            )
    names = list(COMMANDS) if asked == "auto" else [asked]
    for name in names:
        for command in COMMANDS[name]:
            if path := shutil.which(command):
                return _stripper(name, os.path.abspath(path))
    raise UserError(
        f"--strip={asked}: none of {', '.join(c for n in names for c in COMMANDS[n])} is on the "
        "PATH. Install HD-BET (pip install hd-bet, in an environment of its own, its bin on the "
        "PATH) or SynthStrip (of FreeSurfer 7.3 or later, or its container: "
        f"https://surfer.nmr.mgh.harvard.edu/docs/synthstrip). Or {_ELSEWHERE}."
    )


@functools.cache  # PyTorch's import takes seconds.
def _stripper(name: str, command: str) -> Stripper:
    says = _run([command, "--help"], "--strip: ")
    if name == "synthstrip":
        return Stripper(
            name, command, ("-i", f"{{}}/{_SCAN}", "-m", "{}/mask.nii.gz"), "mask.nii.gz"
        )
    # On the CPU: a GPU's memory is JAX's. There both versions advise against mirroring.
    words = ("-i", f"{{}}/{_SCAN}", "-o", "{}/brain.nii.gz", "-device", "cpu")
    if "--disable_tta" in says:  # version 2
        words += ("--disable_tta", "--save_bet_mask", "--no_bet_image")
        return Stripper(name, command, words, "brain_bet.nii.gz")
    return Stripper(name, command, (*words, "-mode", "fast", "-tta", "0"), "brain_mask.nii.gz")


def without_skull(
    stripper: Stripper, files: prepare.CaseFiles, orientation: str
) -> tuple[prepare.CaseFiles, list[str]]:
    """Returns a case whose scans are 0 outside of the brain of the first that has its skull on.

    Args:
        stripper: finds it.
        files: read; the scans on one grid, their axes in any order.
        orientation: see `prepare.prepare_case`.

    Returns:
        The scans, and what the user should know: that all are stripped already, so they stay as
        they are.

    Raises:
        UserError: the tool fails, or finds no brain; or the scans do not share a grid.
    """
    heads = [each for each in files.images.values() if _has_skull(each)]
    if not heads:
        path = next(iter(files.images.values())).path
        return files, [f"{path}: the skull is off already, by its background; it is not stripped"]
    first = heads[0]
    stated = orientation == geometry.HEADER
    ways = {name: grids.turn_onto(first, each, not stated) for name, each in files.images.items()}
    if apart := [name for name, way in ways.items() if way is None]:
        raise UserError(
            f"{files.images[apart[0]].path}: its voxels do not lie where those of {first.path} do, "
            "so the brain of one is not that of the other; --strip expects one grid. Register and "
            f"resample them first, or {_ELSEWHERE}."
        )
    brain = _brain(stripper, first, orientation)
    images = {}
    for name, each in files.images.items():
        inside = nib.orientations.apply_orientation(brain, ways[name])
        images[name] = dataclasses.replace(each, data=np.where(inside, each.data, np.float32(0)))
    return files._replace(images=images), []


def _has_skull(volume: nifti.Volume) -> bool:
    voxel_ml = spaces.voxel_ml(volume.affine)
    _, notes = intensities.find_brain(volume.data, voxel_ml, str(volume.path), allow_skull=True)
    return any(intensities.SKULL_ON in note for note in notes)


def _brain(stripper: Stripper, head: nifti.Volume, orientation: str) -> Bool[np.ndarray, "x y z"]:
    """Returns the brain on the grid of the head.

    The tool gets the voxels in RAS, the order of the MNI templates, for which HD-BET's first
    version asks.
    """
    spl = geometry.orient(head.data, head.affine, orientation)
    ras = np.flip(spl.transpose(2, 1, 0), (0, 1))
    affine = np.diag([*geometry.spacing_spl(head.affine, orientation)[::-1], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ np.subtract(ras.shape, 1) / 2  # centred
    with _called(stripper, head, ras, affine) as path:
        try:
            mask = nifti.read_labels(path)
        except UserError as error:
            raise _useless(stripper, head, f"that cannot be read ({error})") from error
    way = spaces.turn(mask.affine, mask.shape, affine, ras.shape)
    if way is None:
        raise _useless(
            stripper, head, f"of {spaces.times(mask.shape)} voxels, not on the scan's grid"
        )
    inside = nib.orientations.apply_orientation(mask.data, way) > 0
    millilitres = np.count_nonzero(inside) * spaces.voxel_ml(affine)
    if not 0 < millilitres <= intensities.MAX_BRAIN_ML or inside.mean() > _MOST:
        raise _useless(stripper, head, f"of {millilitres:.0f} ml, {inside.mean():.0%} of the scan")
    back = np.flip(inside, (0, 1)).transpose(2, 1, 0)
    return geometry.unorient(back, head.shape, head.affine, orientation)


@contextlib.contextmanager
def _called(
    stripper: Stripper,
    head: nifti.Volume,
    voxels: Num[np.ndarray, "x y z"],
    affine: spaces.Affine,
) -> Iterator[pathlib.Path]:
    """Gives the mask that the tool writes of a scan; its folder is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="kdnet_jax_strip_") as folder:
        nifti.write_image(pathlib.Path(folder, _SCAN), np.ascontiguousarray(voxels), affine)
        words = [word.format(folder) for word in stripper.words]
        said = _run([stripper.command, *words], f"{head.path}: ")
        path = pathlib.Path(folder, stripper.mask)
        if not path.is_file():
            raise UserError(
                f"{head.path}: {stripper.command} wrote no mask of the brain.{_last(said)}\nTry it "
                f"by hand, or {_ELSEWHERE}."
            )
        yield path


def _run(words: Sequence[str], where: str) -> str:
    """Returns what a program says.

    Raises:
        UserError: with its last lines, where it fails.
    """
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise UserError(f"{where}{words[0]} cannot be started ({error.strerror}).") from error
    if done.returncode:
        raise UserError(
            f"{where}{words[0]} failed (exit {done.returncode}).{_last(done.stdout)}\nTry it by "
            f"hand, or {_ELSEWHERE}."
        )
    return done.stdout


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return "".join(f"\n  {line}" for line in lines[-_LAST_LINES:])


def _useless(stripper: Stripper, head: nifti.Volume, found: str) -> UserError:
    return UserError(
        f"{head.path}: {stripper.command} gave a mask {found}; expected a brain of at most "
        f"{intensities.MAX_BRAIN_ML:g} ml. Is it a scan of a head? Else {_ELSEWHERE}."
    )

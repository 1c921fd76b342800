"""The one grid that the files of a case share, or why they share none."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import nibabel as nib
import numpy as np
from nibabel import affines

from kdnet_jax.data.scans import nifti, spaces
from kdnet_jax.errors import UserError

LABEL = "label"  # the name of the reference among the modalities'
# A single header that is off by less than half a voxel is outvoted by so many that agree.
_MAJORITY = 3


@runtime_checkable
class Placed(Protocol):
    """Voxels of a shape that lie somewhere."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In voxels."""
        ...

    @property
    def space(self) -> spaces.Space:
        """Where they lie."""
        ...


def turn_onto(placed: Placed, onto: Placed, stored_alike: bool = False) -> spaces.Turn | None:
    """Returns how voxels come onto another grid by reordering alone; None where they do not.

    Nothing is turned where a header does not say how its voxels lie, or with `stored_alike`.
    """
    way = spaces.turn(placed.space.affine, placed.shape, onto.space.affine, onto.shape)
    by_headers = placed.space.is_known and onto.space.is_known and not stored_alike
    return way if way is None or by_headers or spaces.is_unturned(way) else None


def turned(volume: nifti.Volume, onto: Placed) -> nifti.Volume:
    """Returns a volume on the grid of another, reordered if `turn_onto` says how, else as it is."""
    way = turn_onto(volume, onto)
    return volume if way is None else _reordered(volume, way, onto)


def _reordered(volume: nifti.Volume, way: spaces.Turn, onto: Placed) -> nifti.Volume:
    data = nib.orientations.apply_orientation(volume.data, way)
    return dataclasses.replace(volume, data=data, space=onto.space)


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """What the files of a case agree on.

    Attributes:
        shape: in voxels.
        space: where they lie.
        members: modality or `LABEL` -> volume, for those that lie on it, turned where necessary.
        notes: a sentence about everything that was settled.
        refused: the others -> what is wrong with them.
    """

    shape: tuple[int, ...]
    space: spaces.Space
    members: dict[str, nifti.Volume]
    notes: list[str]
    refused: dict[str, str]

    @property
    def affine(self) -> spaces.Affine:
        """4x4 float64, voxel index to mm, RAS+."""
        return self.space.affine


def common_grid(members: Mapping[str, nifti.Volume], *, stored_alike: bool = False) -> Grid:
    """Returns the grid that the files of a case share.

    Args:
        members: modality or `LABEL` -> volume.
        stored_alike: see `settle`.

    Raises:
        UserError: the shapes differ, or the headers do in a way that `settle` cannot reconcile.
    """
    grid = settle(members, stored_alike=stored_alike)
    if not grid.refused:
        return grid
    if any(sorted(members[name].shape) != sorted(grid.shape) for name in grid.refused):
        listed = "; ".join(f"{v.path} has {spaces.times(v.shape)}" for v in members.values())
        raise UserError(
            f"the files of one case have different shapes: {listed}. Expected one grid: register "
            "and resample them to one sequence first"
        )
    listed = "; ".join(
        f"{volume.path}: {np.round(volume.affine[:3], 3).tolist()}" for volume in members.values()
    )
    raise UserError(
        f"the headers of one case place the same voxels differently ({', '.join(grid.refused)} "
        f"against the others): {listed}. Expected one affine: register and resample the "
        "sequences to one grid, or repair the wrong header"
    )


def settle(members: Mapping[str, nifti.Volume], *, stored_alike: bool = False) -> Grid:
    """Settles which grid is that of a case.

    The grid that most files share wins; a file whose axes run another way through the same voxel
    centres shares it, and is turned, which is exact. A file whose header says nothing, a label
    that differs in its origin alone, and, where at least three files agree, one that is off by
    less than half a voxel are taken to lie on the same grid, with a note.

    Args:
        members: modality or `LABEL` -> volume.
        stored_alike: the headers are known to be wrong and all voxels stored in one order: nothing
            is turned, and the directions of a label's header do not count.
    """
    known = {n: v for n, v in members.items() if v.space.is_known} or dict(members)
    backers = {name: _backers(volume, known, stored_alike) for name, volume in known.items()}
    winner = max(known, key=backers.__getitem__)
    grid = Grid(known[winner].shape, known[winner].space, {}, [], {})
    for name, volume in members.items():
        way = turn_onto(volume, grid, stored_alike)
        if way is not None:
            grid.members[name] = _reordered(volume, way, grid)
            grid.notes.extend(_turn_note(name, volume, winner, grid.space, way))
        elif volume.shape != grid.shape:
            grid.refused[name] = (
                f"has {spaces.times(volume.shape)} voxels; the other files of the case have "
                f"{spaces.times(grid.shape)}"
            )
        elif note := _settled(name, volume, winner, grid, backers[winner][0], stored_alike):
            grid.members[name] = volume
            grid.notes.append(note)
        else:
            found, expected = (np.round(a[:3], 3).tolist() for a in (volume.affine, grid.affine))
            grid.refused[name] = (
                "its header places the voxels elsewhere than the other files of the case do: "
                f"affine {found}, expected {expected}"
            )
    return grid


def _backers(
    volume: nifti.Volume, known: Mapping[str, nifti.Volume], stored_alike: bool
) -> tuple[int, int]:
    """Returns how many files share the grid of one, and how many its order of voxels too."""
    ways = [turn_onto(other, volume, stored_alike) for other in known.values()]
    shared = [way for way in ways if way is not None]
    return len(shared), sum(map(spaces.is_unturned, shared))


def _turn_note(
    name: str, volume: nifti.Volume, winner: str, space: spaces.Space, way: spaces.Turn
) -> list[str]:
    if spaces.is_unturned(way):
        return []
    found, expected = ("".join(nib.aff2axcodes(a)) for a in (volume.affine, space.affine))
    return [
        f"the voxels of {name} are stored in another order ({found}) than those of {winner} "
        f"({expected}): they were turned, as the headers say"
    ]


def _settled(
    name: str,
    volume: nifti.Volume,
    winner: str,
    grid: Grid,
    backers: int,
    stored_alike: bool,
) -> str | None:
    """Returns the note on a file that is taken to lie on the grid, None for one that is not."""
    if spaces.is_identity(volume.affine):
        return f"the affine of {name} is the identity; that of {winner} was taken for it"
    if not volume.space.is_known:
        return (
            f"the header of {name} does not say how its voxels are stored; that of {winner} was "
            "taken for it"
        )
    moved = volume.affine.copy()
    moved[:3, 3] = grid.affine[:3, 3]
    apart, bent = (
        spaces.displacement(affine, grid.affine, grid.shape) for affine in (volume.affine, moved)
    )
    half_voxel = min(affines.voxel_sizes(grid.affine)) / 2
    same_directions = bent < half_voxel or stored_alike
    if (name == LABEL and same_directions) or (backers >= _MAJORITY and apart < half_voxel):
        return (
            f"the header of {name} places voxels up to {apart:.2f} mm away from where {winner} "
            f"has them; the affine of {winner} was taken for it"
        )
    return None

"""A teacher's maps: where their voxels come to lie, how they are cut, and what is no map."""

import itertools
import pathlib

import jax
import nibabel as nib
import numpy as np
import pytest
from jaxtyping import Float

from kdnet_jax.data.loading import loader, patches
from kdnet_jax.data.records import store, teacher_maps
from kdnet_jax.data.scans import geometry, prepare
from kdnet_jax.errors import UserError
from kdnet_jax.models import heads
from kdnet_jax.parallel import sharding
from tests.helpers import glioma, made_up_tasks, stores

# Stored in LPS; SPL is its axes the other way round.
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (7, 8, 9)
LABELS = np.arange(7 * 8 * 9).reshape(SHAPE) % 4


def probabilities(seed: int, shape: tuple[int, ...] = SHAPE) -> Float[np.ndarray, "x y z k"]:
    """Of four classes, on a scan's own grid."""
    values = np.random.default_rng(seed).random((*shape, 4))
    return (values / values.sum(axis=-1, keepdims=True)).astype(np.float32)


def write(path: pathlib.Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def case_on(way: geometry.Geometry, number: int = 0) -> prepare.PreparedCase:
    image, name = np.ones((*way.working_shape, 2), np.float16), f"case_{number}"
    return prepare.PreparedCase(name, name, None, ("t1", "t2"), image, None, None, way)


def cropped() -> store.CaseStore:
    """One case on a working grid of 2 mm, of a crop of its scan."""
    box = ((1, 9), (0, 8), (1, 7))
    return stores.store_of([case_on(geometry.make_geometry(SHAPE, AFFINE, box=box, spacing=2.0))])


def opened(
    folder: pathlib.Path, cases: store.CaseStore, head: heads.Head = glioma.SOFTMAX
) -> teacher_maps.Maps:
    root = folder.parent / "datasets"
    return teacher_maps.open_maps(folder, cases, range(len(cases)), head, root=root)


def test_a_voxel_s_probabilities_come_where_the_voxel_does(tmp_path: pathlib.Path) -> None:
    shapes = (SHAPE, (12, 9, 9))
    cases = stores.store_of(
        [case_on(geometry.make_geometry(shape, AFFINE), n) for n, shape in enumerate(shapes)]
    )
    values = [probabilities(n, shape) for n, shape in enumerate(shapes)]
    write(tmp_path / "maps" / "case_0_prob.nii.gz", values[0])
    write(tmp_path / "maps" / "case_0.nii.gz", np.ones(SHAPE, np.uint8))  # the mask beside it
    # The same voxels of 12 x 9 x 9, stored in RAS.
    ras = np.diag([1.0, 1.0, 1.0, 1.0])
    ras[:2, 3] = -11, -8
    write(tmp_path / "maps" / "case_1.nii.gz", values[1][::-1, ::-1], ras)
    maps = opened(tmp_path / "maps", cases)
    assert maps.channels == 3
    for number, each in enumerate(values):
        expected = np.rint(each[..., 1:].transpose(2, 1, 0, 3) * teacher_maps.ONE)
        np.testing.assert_allclose(maps[number], expected, atol=1)


def test_maps_are_resampled_as_an_image_is(tmp_path: pathlib.Path) -> None:
    cases, values = cropped(), probabilities(3)
    write(tmp_path / "maps" / "case_0.nii.gz", values)
    found = opened(tmp_path / "maps", cases)[0] / teacher_maps.ONE
    assert found.shape == (4, 4, 3, 3)
    for channel in range(3):
        expected = geometry.to_working(values[..., channel + 1], cases[0].geometry, order=1)
        np.testing.assert_allclose(found[..., channel], expected, atol=1e-4)


def test_maps_are_made_once_and_anew_where_they_changed(tmp_path: pathlib.Path) -> None:
    cases = cropped()
    path = write(tmp_path / "maps" / "case_0.nii.gz", probabilities(3))
    first = opened(tmp_path / "maps", cases)
    made = first.files[0].stat().st_mtime_ns
    again = opened(tmp_path / "maps", cases)
    assert (again.hash, again.files[0].stat().st_mtime_ns) == (first.hash, made)
    write(path, probabilities(4))
    other = opened(tmp_path / "maps", cases)
    assert other.hash != first.hash
    assert (other[0] != first[0]).any()
    # Regions are other channels of the same file name.
    write(path, probabilities(4)[..., :3])
    regions = opened(tmp_path / "maps", cases, glioma.REGIONS)
    assert (regions.channels, regions[0].shape[-1]) == (3, 3)


def test_maps_of_one_region_are_not_cut_along_the_slices(tmp_path: pathlib.Path) -> None:
    cases = stores.store_of([case_on(geometry.make_geometry(SHAPE, AFFINE))])
    head = heads.Head(made_up_tasks.of_regions(1), "regions")
    assert len(head.outputs) == 1
    values = probabilities(5)[..., :1]
    write(tmp_path / "maps" / "case_0.nii.gz", values)
    found = opened(tmp_path / "maps", cases, head)
    expected = np.rint(values.transpose(2, 1, 0, 3) * teacher_maps.ONE)
    np.testing.assert_allclose(found[0], expected, atol=1)


BAD = {
    "no such folder": lambda path: path.parent.rmdir(),
    "1 of the 1 training cases have no map there, such as case_0": lambda path: None,
    r"has 1 channel; expected 4, the probabilities of background": lambda path: write(
        path, probabilities(0)[..., 0]
    ),
    r"has 3 channels; expected 4": lambda path: write(path, probabilities(0)[..., 1:]),
    "values lie between 0 and 3;": lambda path: write(path, 3 * np.eye(4, dtype=np.uint8)[LABELS]),
    "values lie between -": lambda path: write(path, np.log(probabilities(0))),
    "sum to something else than 1": lambda path: write(path, 0.5 * probabilities(0)),
    "lies on another grid than the scan: 8 x 8 x 9": lambda path: write(
        path, probabilities(0, (8, 8, 9))
    ),
    "lies on another grid than the scan: 7 x 8 x 9": lambda path: write(
        path, probabilities(0), np.diag([-1.0, -1.0, 1.5, 1.0])
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_map_is_one_message(tmp_path: pathlib.Path, message: str) -> None:
    path = tmp_path / "maps" / "case_0.nii.gz"
    path.parent.mkdir()
    BAD[message](path)
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path / "maps", cropped())
    assert str(tmp_path / "maps") in str(error.value)
    assert not list((tmp_path).rglob("*.npy"))


def test_maps_are_cut_with_the_patches_wherever_the_cases_lie(tmp_path: pathlib.Path) -> None:
    cases = stores.store_of([stores.make_case(0, (9, 8, 7)), stores.make_case(1, (12, 9, 9))])
    files = {}
    for number in range(2):
        # Of each voxel its own number, and those of its case.
        shape = cases[number].image.shape[:3]
        each = np.stack([np.arange(np.prod(shape)).reshape(shape), np.full(shape, number)], axis=-1)
        files[number] = tmp_path / f"{number}.npy"
        np.save(files[number], (each + 1).astype(np.uint16))
    maps = teacher_maps.Maps(tmp_path, 2, "", files)
    options = {"patch": (12, 8, 10), "batch": 3, "seed": 1, "mesh": sharding.make_mesh()}

    def batches(**more: object) -> list[loader.Batch]:
        with loader.make_loader(cases, [0, 1], **options, **more) as made:
            return jax.device_get(list(itertools.islice(made, 6)))

    streamed, resident = batches(maps=maps), batches(maps=maps, on_device=True)
    plain = batches()
    for host, device, without in zip(streamed, resident, plain, strict=True):
        for key, value in host.items():
            np.testing.assert_array_equal(value, device[key], err_msg=key)
        for key, value in without.items():
            np.testing.assert_array_equal(value, host[key], err_msg=key)
        assert host["teacher"].dtype == np.float32
    source = patches.PatchSource(
        cases, [0, 1], **{k: options[k] for k in ("patch", "batch", "seed")}
    )
    for index in range(18):
        source.read(source.case_of(index))
        case, start = source.place_of(index)
        expected = patches.crop(maps[case], start, options["patch"]) / np.float32(teacher_maps.ONE)
        found = streamed[index // 3]["teacher"][index % 3]
        np.testing.assert_allclose(found, expected, rtol=1e-6)

"""Builds: the same bits however they are made, nothing unfinished, nothing mixed up."""

import gzip
import itertools
import json
import os
import pathlib
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import nibabel
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from data_builders.brats import brats_dataset_builder
from data_builders.brats_phantom import brats_phantom_dataset_builder
from data_builders.task_cohort import task_cohort_dataset_builder
from kdnet_jax import task as task_lib
from kdnet_jax.core import files as files_lib
from kdnet_jax.data.loading import loader
from kdnet_jax.data.records import building, case_builder, cohort_builder, store
from kdnet_jax.data.scans import prepare
from kdnet_jax.data.sources import cases, layouts
from kdnet_jax.errors import UserError
from kdnet_jax.parallel import sharding
from tests.helpers import commands

SIZE = 24


def write_case(folder: pathlib.Path, name: str, suffix: str = ".nii.gz", seed: int = 0) -> None:
    """Writes a case in the layout of BraTS 2021: a bright block with a tumour."""
    rng = np.random.default_rng(seed)
    (folder / name).mkdir(parents=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    for modality in task_lib.GLIOMA.modalities:
        data = np.zeros((SIZE,) * 3, np.int16)
        data[4:-4, 3:-5, 6:-3] = rng.integers(100, 900, (SIZE - 8, SIZE - 8, SIZE - 9))
        path = folder / name / f"{name}_{modality}{suffix}"
        nibabel.save(nibabel.Nifti1Image(data, affine), path)
    labels = np.zeros((SIZE,) * 3, np.uint8)
    labels[8:12, 8:12, 8:12] = rng.choice([0, 1, 2, 4], (4, 4, 4))
    nibabel.save(nibabel.Nifti1Image(labels, affine), folder / name / f"{name}_seg{suffix}")


@pytest.fixture
def scans(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "scans"
    for index in range(5):
        write_case(folder, f"BraTS2021_{index:05d}", seed=index)
    return folder


def build(root: pathlib.Path, scans: pathlib.Path, **kwargs: Any) -> store.CaseStore:
    return building.build_scans(root, scans, **({"spacing": 2.0, "progress": False} | kwargs))


def built(root: pathlib.Path) -> list[pathlib.Path]:
    """The folders that look finished."""
    return sorted(
        path.parent for path in root.rglob(store.METADATA_FILE) if "incomplete" not in str(path)
    )


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if "array_record" in p.name} | {
        store.METADATA_FILE: (folder / store.METADATA_FILE).read_bytes()
    }


def test_stored_cases_are_the_prepared_ones_in_the_order_of_their_names(
    tmp_path: pathlib.Path, scans: pathlib.Path
) -> None:
    opened = build(tmp_path / "root", scans, modalities=("t1ce", "flair"))
    cohort = cases.find_cases(scans, modalities=("t1ce", "flair"))
    assert [s.case_id for s in opened.summaries] == [f"BraTS2021_{i:05d}" for i in range(5)]
    for stored, case in zip(opened, cohort.cases, strict=True):
        expected, _ = prepare.prepare_case(case, spacing=2.0)
        np.testing.assert_array_equal(stored.image, expected.image)
        np.testing.assert_array_equal(stored.label, expected.label)
        np.testing.assert_array_equal(stored.reference, expected.reference)
        assert stored.geometry == expected.geometry
        assert stored.modalities == expected.modalities == ("t1ce", "flair")
    assert opened.summaries == [store.summarise(case) for case in opened]


@pytest.mark.once
def test_the_bits_do_not_depend_on_the_workers(
    tmp_path: pathlib.Path, scans: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case_builder, "CASES_PER_SHARD", 2)
    for workers in (1, 2, 4):
        build(tmp_path / str(workers), scans, workers=workers)
    one, two, four = (files(built(tmp_path / str(workers))[0]) for workers in (1, 2, 4))
    assert len(one) == 4
    assert one == two == four


def test_what_is_there_is_opened_and_not_built(tmp_path: pathlib.Path, scans: pathlib.Path) -> None:
    first = build(tmp_path / "root", scans)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")}
    second = build(tmp_path / "root", scans, workers=1)
    assert second.fingerprint == first.fingerprint
    assert second.summaries == first.summaries
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")} == before


def test_a_moved_cohort_is_the_same_cohort(tmp_path: pathlib.Path, scans: pathlib.Path) -> None:
    first = build(tmp_path / "root", scans)
    moved = shutil.copytree(scans, tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile)
    assert build(tmp_path / "root", moved).fingerprint == first.fingerprint
    assert len(built(tmp_path / "root")) == 1


def test_image_and_label_of_one_name_both_count(tmp_path: pathlib.Path) -> None:
    """As in the Decathlon: imagesTr/CASE.nii.gz holds all sequences, labelsTr/CASE.nii.gz."""
    places = [tmp_path / part / "CASE.nii.gz" for part in ("imagesTr", "labelsTr")]
    for place in places:
        place.parent.mkdir()
        place.write_bytes(gzip.compress(b"first"))
    image, label = places
    images = {name: (image, channel) for channel, name in enumerate(task_lib.GLIOMA.modalities)}
    case = cases.Case("CASE", "CASE", None, images, label, "decathlon")
    cohort = cases.Cohort("decathlon", [case], [])
    config = cohort_builder.CohortConfig(
        name="any", release="decathlon", modalities=task_lib.GLIOMA.modalities, spacing=2.0
    )

    def described() -> str:
        return repr(cohort_builder.describe(cohort, config, task_lib.GLIOMA))

    first = described()
    for place in places:
        place.write_bytes(gzip.compress(b"other"))
        assert described() != first
        first = described()


@pytest.mark.once
def test_everything_that_changes_the_records_gets_its_own_folder(
    tmp_path: pathlib.Path, scans: pathlib.Path
) -> None:
    root = tmp_path / "root"
    names = {build(root, scans).fingerprint}
    for change in (
        {"spacing": 3.0},
        {"spacing": (2.0, 3.0, 2.0)},
        {"spacing": None},
        {"modalities": ("t1", "t2")},
        {"orientation": "LPS"},
        {"label_convention": "brats2020"},
    ):
        names.add(build(root, scans, **change).fingerprint)
    # Another intensity in one voxel of one file, of the same length.
    path = scans / "BraTS2021_00002" / "BraTS2021_00002_t1.nii.gz"
    image = nibabel.load(path)
    data = np.asarray(image.dataobj).copy()
    data[10, 10, 10] += 1
    nibabel.save(nibabel.Nifti1Image(data, image.affine), path)
    names.add(build(root, scans).fingerprint)
    shutil.rmtree(scans / "BraTS2021_00004")
    names.add(build(root, scans).fingerprint)
    assert len(names) == len(built(root)) == 9


def test_metadata_tells_what_the_records_are_made_of(
    tmp_path: pathlib.Path, scans: pathlib.Path
) -> None:
    opened = build(tmp_path / "root", scans)
    metadata = json.loads((opened.folder / store.METADATA_FILE).read_text())
    assert metadata["fingerprint"] == opened.fingerprint
    assert metadata["fingerprint"] in str(opened.folder)
    assert metadata["content"]["release"] == "brats2021"
    assert metadata["content"]["spacing_mm"] == [2.0]
    assert metadata["packages"]["numpy"] == np.__version__
    assert [row["case_id"] for row in metadata["content"]["cases"]] == [
        summary.case_id for summary in opened.summaries
    ]


def test_tfds_alone_reads_what_was_built(tmp_path: pathlib.Path, scans: pathlib.Path) -> None:
    opened = build(tmp_path / "root", scans)
    builder = tfds.builder_from_directory(str(opened.folder))
    record = builder.as_data_source(split=store.SPLIT)[3]
    assert record["case_id"] == b"BraTS2021_00003"
    assert record["image"].dtype == np.float16
    np.testing.assert_array_equal(record["image"], opened[3].image)
    assert store.open_store(builder).summaries == opened.summaries


@pytest.mark.once
def test_real_scans_give_patches_with_tumour(
    tmp_path: pathlib.Path, sample_dir: pathlib.Path
) -> None:
    (tmp_path / "scans").mkdir()
    for folder in sorted(sample_dir.glob("BraTS2021_*"))[:2]:
        (tmp_path / "scans" / folder.name).symlink_to(folder, target_is_directory=True)
    opened = build(tmp_path / "root", tmp_path / "scans", modalities=("t1ce",))
    assert len(opened) == 2
    with loader.make_loader(
        opened, [0, 1], mesh=sharding.make_mesh(), patch=(32, 48, 40), batch=2, seed=0
    ) as batches:
        found = list(itertools.islice(batches, 6))
    images = np.concatenate([batch["image"] for batch in found])
    labels = np.concatenate([batch["label"] for batch in found])
    assert images.shape == (12, 32, 48, 40, 1)
    assert labels.reshape(12, -1).any(1).sum() >= 4
    # Tumour lies where there is brain, so image and label were cut at one place.
    assert (images[labels > 0] != 0).mean() > 0.99


# ------------------------------------------------------------------------ what goes wrong

_KILLED = """
    import os, pathlib, signal, sys
    from kdnet_jax.data.records import building
    from kdnet_jax.data.scans import prepare

    prepare_case = prepare.prepare_case

    def die_at_the_fourth(case, **kwargs):
        if case.case_id.endswith("3"):
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare_case(case, **kwargs)

    prepare.prepare_case = die_at_the_fourth
    building.build_scans(
        pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), spacing=2.0, workers=1
    )
"""


@pytest.mark.once
def test_a_killed_build_leaves_nothing_that_looks_finished(
    tmp_path: pathlib.Path, scans: pathlib.Path
) -> None:
    root = tmp_path / "root"
    done = commands.python("-c", textwrap.dedent(_KILLED), root, scans)
    assert done.returncode == -signal.SIGKILL
    assert list(root.rglob("incomplete.*"))
    assert not built(root)
    opened = build(root, scans)
    assert [case.case_id for case in opened] == [f"BraTS2021_{i:05d}" for i in range(5)]
    assert not list(root.rglob("incomplete.*"))
    build(tmp_path / "other", scans)
    assert files(built(root)[0]) == files(built(tmp_path / "other")[0])


_FULL = """
    import pathlib, resource, sys
    from kdnet_jax import errors
    from kdnet_jax.data.records import building

    # No file may grow beyond these bytes, as on a disk that becomes full while it is written.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    root, scans = map(pathlib.Path, sys.argv[1:])
    errors.exit_on_user_error(
        lambda: building.build_scans(root, scans, spacing=2.0, progress=False)
    )
"""


@pytest.mark.once
def test_a_disk_that_becomes_full_is_told_and_nothing_is_left(
    tmp_path: pathlib.Path, scans: pathlib.Path
) -> None:
    root = tmp_path / "root"
    done = commands.python("-c", textwrap.dedent(_FULL), root, scans)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "the disk became full while the dataset was built" in done.stderr
    assert not built(root)
    assert not list(root.rglob("incomplete.*"))
    assert not list(root.rglob("*array_record*"))
    assert len(build(root, scans)) == 5


def test_the_threads_may_be_left_from_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a build ended with an error, and the garbage collector runs in a thread."""
    lost: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    held, begin, dropped = [], threading.Event(), threading.Event()

    def work(item: int) -> int:
        if item == 1:
            begin.wait(20)
            held.clear()
            dropped.set()
        return item

    held.append(case_builder.ordered_map(work, range(4), 1))
    first = next(held[0])
    begin.set()
    assert dropped.wait(20)
    assert (first, lost) == (0, [])


@pytest.mark.once
def test_leftovers_go_even_if_the_cohort_changed_since(
    tmp_path: pathlib.Path, scans: pathlib.Path
) -> None:
    leftover = tmp_path / "root" / "brats" / "older-fingerprint" / "incomplete.ABCDEF_1.0.0"
    leftover.mkdir(parents=True)
    build(tmp_path / "root", scans)
    assert not leftover.exists()


def spoil(scans: pathlib.Path, case: str) -> None:
    """Cuts a file in the middle, as an interrupted download does."""
    path = scans / case / f"{case}_t2.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.once
@pytest.mark.parametrize("workers", [1, 3])
def test_a_bad_case_stops_the_build_and_names_the_way_out(
    tmp_path: pathlib.Path, scans: pathlib.Path, workers: int
) -> None:
    spoil(scans, "BraTS2021_00003")
    with pytest.raises(UserError, match=r"(?s)BraTS2021_00003_t2.*skip_bad_cases"):
        build(tmp_path / "root", scans, workers=workers)
    assert not built(tmp_path / "root")
    assert not list((tmp_path / "root").rglob("incomplete.*"))


@pytest.mark.once
def test_bad_cases_can_be_left_out_and_are_told(
    tmp_path: pathlib.Path, scans: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case_builder, "CASES_PER_SHARD", 1)
    for case in ("BraTS2021_00000", "BraTS2021_00003"):
        spoil(scans, case)
    opened = build(tmp_path / "root", scans, skip_bad_cases=True)
    assert [case.case_id[-1] for case in opened] == ["1", "2", "4"]
    assert sum("left out" in note and "_t2" in note for note in opened.notes) == 2
    # A later run that did not ask for it must not train on fewer cases silently.
    with pytest.raises(UserError, match=r"without 2 such cases.*skip_bad_cases"):
        build(tmp_path / "root", scans)
    assert len(build(tmp_path / "root", scans, skip_bad_cases=True)) == 3


@pytest.mark.once
def test_nothing_but_bad_cases(tmp_path: pathlib.Path, scans: pathlib.Path) -> None:
    for index in range(5):
        spoil(scans, f"BraTS2021_{index:05d}")
    with pytest.raises(UserError, match="none of the cases"):
        build(tmp_path / "root", scans, skip_bad_cases=True)
    assert not built(tmp_path / "root")


@pytest.mark.once
def test_too_little_space_is_told_before_the_work(
    tmp_path: pathlib.Path, scans: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case_builder, "DISK_RESERVE", 10**18)
    with pytest.raises(UserError, match=r"not enough disk space.*--output"):
        build(tmp_path / "root", scans)
    assert not built(tmp_path / "root")


def test_the_writers_own_error_of_a_full_disk_is_known() -> None:
    writer = array_record_module.ArrayRecordWriter("/dev/full", "group_size:1")
    writer.write(b"a record smaller than the buffer")
    with pytest.raises(RuntimeError) as caught:
        writer.close()
    assert files_lib.is_full(caught.value)


def test_a_root_that_cannot_be_a_folder_is_named(
    tmp_path: pathlib.Path, scans: pathlib.Path
) -> None:
    (tmp_path / "root").write_text("a file")
    with pytest.raises(UserError, match=r"root.*--output"):
        build(tmp_path / "root", scans)


def test_a_damaged_dataset_is_named(tmp_path: pathlib.Path, scans: pathlib.Path) -> None:
    folder = build(tmp_path / "root", scans).folder
    (record,) = (path for path in folder.iterdir() if "array_record" in path.name)
    record.unlink()
    with pytest.raises(UserError, match=r"array_record.*: the file is missing\..*Delete"):
        build(tmp_path / "root", scans)


@pytest.mark.once
@pytest.mark.parametrize("name", [store.METADATA_FILE, "dataset_info.json"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (pathlib.Path.unlink, "the file is missing"),
        (lambda path: os.truncate(path, path.stat().st_size // 2), "the file is damaged"),
        (lambda path: path.write_text("{}"), "it holds no '"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    ],
)
def test_a_damaged_description_is_named(
    tmp_path: pathlib.Path,
    scans: pathlib.Path,
    name: str,
    fault: Callable[[pathlib.Path], None],
    message: str,
) -> None:
    folder = build(tmp_path / "root", scans).folder
    fault(folder / name)
    with pytest.raises(UserError, match=rf"{name}: cannot be read: {message}.*Delete {folder}"):
        build(tmp_path / "root", scans)


@pytest.mark.once
def test_two_builds_of_one_dataset_at_once(tmp_path: pathlib.Path, scans: pathlib.Path) -> None:
    with futures.ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(build, tmp_path / "root", scans) for _ in range(2)]
        first, second = (run.result() for run in runs)
    assert first.summaries == second.summaries
    np.testing.assert_array_equal(first[4].image, second[4].image)
    assert len(built(tmp_path / "root")) == 1


@pytest.mark.parametrize("wrong", [{"spacing": 0.0}, {"spacing": (1.0, -1.0, 1.0)}, {"workers": 0}])
def test_wrong_values_are_named(
    tmp_path: pathlib.Path, scans: pathlib.Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))}: .* above 0"):
        build(tmp_path / "root", scans, **wrong)


# -------------------------------------------------------------------- parts, and the builders


def test_ordered_map_keeps_order_and_bounds_what_is_held() -> None:
    started = []

    def note(item: int) -> int:
        started.append(item)
        return item

    results = case_builder.ordered_map(note, range(20), workers=3)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    # 5 taken, and no more than workers + 1 beyond them, however long the consumer takes.
    time.sleep(0.1)
    assert len(started) <= 9
    assert list(results) == list(range(5, 20))


def test_estimate_follows_the_voxels(scans: pathlib.Path) -> None:
    cohort = cases.find_cases(scans)
    fine = cohort_builder.estimate_bytes(cohort, 1.0)
    scans_size = sum(path.stat().st_size for path in scans.rglob("*.nii.gz"))
    assert 0.5 * scans_size < fine < 3 * scans_size
    assert cohort_builder.estimate_bytes(cohort, 2.0) == pytest.approx(fine / 8, rel=0.01)
    assert cohort_builder.estimate_bytes(cohort, None) == fine


@pytest.mark.parametrize(
    "builder",
    [
        brats_dataset_builder.Builder,
        brats_phantom_dataset_builder.Builder,
        task_cohort_dataset_builder.Builder,
    ],
)
def test_builders_are_documented_as_tfds_asks(builder: type[case_builder.CaseBuilder]) -> None:
    metadata = builder.get_metadata()
    assert "segmentation" in metadata.description
    assert "@" in metadata.citation
    assert metadata.tags
    assert set(metadata.tags) <= set(valid_tags())


def valid_tags() -> Sequence[str]:
    from tensorflow_datasets.core import dataset_metadata

    return dataset_metadata.valid_tags()


def test_there_is_a_config_for_every_release() -> None:
    assert set(brats_dataset_builder.Builder.builder_configs) == set(layouts.RELEASES)


def test_a_named_config_builds_from_manual_dir(tmp_path: pathlib.Path, scans: pathlib.Path) -> None:
    builder = brats_dataset_builder.Builder(
        data_dir=str(tmp_path / "root"), config="brats2021", progress=False
    )
    builder.download_and_prepare(
        download_dir=str(tmp_path / "downloads"),
        download_config=tfds.download.DownloadConfig(manual_dir=str(scans)),
    )
    assert len(store.open_store(builder)) == 5


@pytest.mark.once
def test_phantom_cases_are_a_function_of_seed_and_index(tmp_path: pathlib.Path) -> None:
    few = building.build_phantom(tmp_path, cases=2, seed=1, spacing=4.0, progress=False)
    more = building.build_phantom(tmp_path, cases=3, seed=1, spacing=4.0, progress=False)
    other = building.build_phantom(tmp_path, cases=2, seed=2, spacing=4.0, progress=False)
    assert len({few.fingerprint, more.fingerprint, other.fingerprint}) == 3
    np.testing.assert_array_equal(few[1].image, more[1].image)
    assert few[1].image.shape[-1] == 4
    assert few[0].image.shape != other[0].image.shape or (few[0].image != other[0].image).any()
    assert all(any(summary.class_voxels) for summary in more.summaries)
    assert (
        building.build_phantom(tmp_path, cases=2, seed=1, spacing=4.0, progress=False).folder
        == few.folder
    )

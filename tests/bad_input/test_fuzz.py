"""Random headers, names and settings: a `UserError` or a sound value, and nothing else."""

import contextlib
import json
import math
import pathlib
import tempfile
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from configs import student
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import flat_keys, reading
from kdnet_jax.data.scans import nifti, nifti_header, prepare
from kdnet_jax.data.sources import cases
from kdnet_jax.errors import UserError
from tests.bad_input import scans

pytestmark = pytest.mark.once

_SOUND = scans.encode(scans.brain())
_FEW = hypothesis.settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
_FLOATS = st.floats(width=32)
_WHOLE = st.integers(-(2**15), 2**15 - 1)


def _read(path: pathlib.Path, raw: bytes) -> None:
    """Reads and prepares a scan; a volume that is accepted has to be one."""
    scans.write(path, raw)
    with contextlib.suppress(UserError):
        volume = nifti.read_volume(path)
        assert volume.data.ndim == 3
        assert volume.data.size <= nifti_header.MAX_VOXELS
        assert np.isfinite(volume.data).all()
        assert abs(np.linalg.det(volume.affine[:3, :3])) > 0
        case, _ = prepare.prepare_case(
            prepare.unlabelled_case({"t1ce": path}), spacing=8.0, allow_skull=True
        )
        assert math.prod(case.image.shape) <= nifti_header.MAX_VOXELS


@_FEW
@hypothesis.given(
    changes=st.dictionaries(st.integers(0, 351), st.integers(0, 255), min_size=1, max_size=12),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
def test_random_bytes_in_a_header(
    changes: dict[int, int], suffix: str, tmp_path: pathlib.Path
) -> None:
    raw = bytearray(_SOUND)
    for place, value in changes.items():
        raw[place] = value
    _read(tmp_path / f"scan{suffix}", bytes(raw))


@_FEW
@hypothesis.given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "dim": st.lists(st.one_of(_WHOLE, st.integers(0, 40)), min_size=8, max_size=8),
            "pixdim": st.lists(st.one_of(_FLOATS, st.just(1.0)), min_size=8, max_size=8),
            "datatype": st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1536, 2304]),
            "vox_offset": st.one_of(_FLOATS, st.sampled_from([0.0, 352.0, 353.5, 400.0])),
            "scl_slope": _FLOATS,
            "scl_inter": _FLOATS,
            "sform_code": _WHOLE,
            "qform_code": _WHOLE,
            "srow_x": st.lists(_FLOATS, min_size=4, max_size=4),
            "srow_z": st.lists(_FLOATS, min_size=4, max_size=4),
            "quatern_b": _FLOATS,
            "qoffset_x": _FLOATS,
            "xyzt_units": st.integers(0, 255),
        },
    )
)
def test_random_fields_of_a_header(fields: dict[str, Any], tmp_path: pathlib.Path) -> None:
    _read(tmp_path / "scan.nii", scans.encode(scans.brain(), **fields))


_WORDS = st.sampled_from(
    [
        *("BraTS2021_00001", "BraTS20_Training_001", "BraTS-GLI-00001-000", "BRATS_001", "case"),
        *("t1", "t1ce", "t2", "flair", "seg", "imagesTr", "labelsTr", "a b", "<b>", "ü", "'", "%"),
    ]
)
_NAMES = st.builds(
    lambda folders, stem, suffix: "/".join([*folders, "_".join(stem)]) + suffix,
    st.lists(_WORDS, max_size=3),
    st.lists(_WORDS, min_size=1, max_size=3),
    st.sampled_from([".nii", ".nii.gz", ".NII.GZ", ".txt", ""]),
)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(names=st.lists(_NAMES, max_size=12))
def test_random_names_of_files(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as text:
        folder = pathlib.Path(text)
        for name in names:
            with contextlib.suppress(OSError):  # a file may stand where a folder is to be
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
        with contextlib.suppress(UserError):
            cohort = cases.find_cases(folder)
            assert all(case.images for case in cohort.cases)
        with contextlib.suppress(UserError):
            cases.survey_cases(folder)


_VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    st.lists(st.one_of(st.integers(-2, 40), st.floats(), st.text(max_size=3)), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
_CONFIG = student.get_config("smoke").to_dict()


def _keys() -> list[str]:
    return sorted(flat_keys.flatten(_CONFIG))


@hypothesis.settings(max_examples=250, deadline=None)
@hypothesis.given(key=st.sampled_from(_keys()), value=_VALUES)
def test_random_values_of_a_setting(key: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as text:
        config = student.get_config("smoke").to_dict()
        *above, last = key.split(".")
        place = config
        for part in above:
            place = place[part]
        place[last] = value
        path = pathlib.Path(text) / "config.json"
        with contextlib.suppress(UserError):
            path.write_text(json.dumps(config), "utf-8")
            assert isinstance(reading.read_run(path.parent), experiment_lib.Experiment)

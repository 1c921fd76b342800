"""Cases that lack a sequence: who trains on them, and that nobody is tested on them."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from ml_collections import config_dict

from configs import common
from kdnet_jax.config import reading
from kdnet_jax.data import splits
from kdnet_jax.data.records import store
from kdnet_jax.data.scans import familiarity, prepare
from kdnet_jax.data.sources import cases
from kdnet_jax.errors import UserError
from kdnet_jax.experiment import run_checks, run_data, runner
from kdnet_jax.runs import model, teachers

# What is taken from the cases of the tiny cohort, by their numbers.
REMOVED = {1: ("t2",), 2: ("t1ce", "flair"), 3: ("flair", "seg")}


@pytest.fixture(scope="module")
def gaps(tiny_cohort: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The tiny cohort without some of its files."""
    folder = tmp_path_factory.mktemp("gaps") / "scans"
    shutil.copytree(tiny_cohort, folder)
    for number, sequences in REMOVED.items():
        for sequence in sequences:
            _remove(folder, number, sequence)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("root")


def _name(number: int) -> str:
    return f"BraTS2021_{number:05d}"


def _remove(folder: pathlib.Path, number: int, sequence: str) -> None:
    (folder / _name(number) / f"{_name(number)}_{sequence}.nii.gz").unlink()


def _config(role: str, cohort: pathlib.Path, root: pathlib.Path) -> config_dict.ConfigDict:
    config = common.base_config(role, "smoke")
    config.data.data_dir, config.data.root, config.data.incomplete = str(cohort), str(root), True
    if role != "baseline":
        config.augment.modality_dropout = 0.3
    return config


def _names(data: run_data.Data, indices: list[int]) -> set[str]:
    return {data.cases.summaries[index].case_id for index in indices}


@pytest.mark.once
def test_each_role_trains_on_the_cases_that_have_its_sequences(
    gaps: pathlib.Path, root: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    student = reading.read(_config("student", gaps, root))
    data = run_data.open_data(student)
    said = "3 of 8 cases lack a sequence: t1ce (1), t2 (1), flair (2). They are used in training"
    assert said in caplog.text
    kept = [each for each in data.cases.summaries if not each.absent]
    fractions = (0.5, 0.25, 0.25)
    complete = splits.make_split(kept, seed=student.split.seed, fractions=fractions)
    # The parts of the complete cases are as if there were no others.
    assert data.split.train == tuple(sorted([*complete.train, _name(1), _name(2)]))
    assert (data.split.validation, data.split.test) == (complete.validation, complete.test)
    assert data.split.unlabelled == (_name(3),)
    own = set(complete.train)
    assert _names(data, run_data.training_cases(student, data)) == {*own, _name(1)}
    assert _names(data, run_data.unlabelled_cases(student, data)) == {_name(3)}
    teacher = student.teacher.to_train
    assert _names(data, run_data.training_cases(teacher, data)) == {*own, _name(1), _name(2)}
    # Two students of one step have the same batches, so one on T2, without case 1, is refused.
    config = _config("student", gaps, root)
    config.model.modalities = "t2"
    run_checks.check_same_cases([student, student], data)
    with pytest.raises(UserError, match=r"lack a sequence: \d have t1ce, \d have t2\."):
        run_checks.check_same_cases([student, reading.read(config)], data)
    several = _config("baseline", gaps, root)
    several.model.modalities = "t1ce,t2"
    assert _names(data, run_data.training_cases(reading.read(several), data)) == own
    # It has none of these.
    several.model.modalities, several.augment.modality_dropout = "t1ce,flair", 0.3
    found = run_data.training_cases(reading.read(several), data)
    assert _names(data, found) == {*own, _name(1)}
    caplog.clear()
    run_checks.check_sequences(student, data)
    run_checks.check_sequences(teacher, data)
    assert [each.message for each in caplog.records] == [
        "note: 1 training cases lack what the student sees (t1ce), and are left out of its training"
    ]


def test_what_a_case_has_is_prepared_as_ever_and_the_rest_is_0(
    gaps: pathlib.Path, root: pathlib.Path, tiny_cohort: pathlib.Path
) -> None:
    data = run_data.open_data(reading.read(_config("student", gaps, root)))
    found = data.cases[[each.case_id for each in data.cases.summaries].index(_name(2))]
    assert (found.modalities, found.absent) == (data.cases.modalities, ("t1ce", "flair"))
    whole = cases.find_cases(tiny_cohort).cases[1]
    expected, _ = prepare.prepare_case(whole, spacing=6.0)
    for channel, name in enumerate(found.modalities):
        value = 0 if name in found.absent else expected.image[..., channel]
        np.testing.assert_array_equal(found.image[..., channel], value)
    np.testing.assert_array_equal(found.label, expected.label)
    rows = store.read_metadata(data.cases.folder)["cases"]
    assert [row.get("absent") for row in rows[:4]] == [["t2"], ["t1ce", "flair"], ["flair"], None]
    usual = [expected] * 4
    alone = familiarity.measure([*usual, found])["sequences"]
    assert alone["flair"] is None  # of too few cases
    assert alone["t2"] == familiarity.measure([*usual, expected])["sequences"]["t2"]


def test_cases_that_cannot_be_used_are_refused(
    gaps: pathlib.Path, root: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = _config("baseline", gaps, root)
    config.data.incomplete = False
    with pytest.raises(UserError, match=r"missing in 2 of 7 cases: .*--config.data.incomplete=tru"):
        run_data.open_data(reading.read(config))
    config.data.incomplete, config.data.modalities = True, "t1ce,flair"
    with pytest.raises(
        UserError, match=f"t1ce, flair are all missing in 1 case: {_name(2)}. Remove"
    ):
        run_data.open_data(reading.read(config))
    config.data.modalities, config.split.file = "", str(tmp_path / "split.json")
    parts = {"train": [_name(4)], "validation": [_name(1)], "test": [_name(5)]}
    (tmp_path / "split.json").write_text(json.dumps(parts))
    with pytest.raises(UserError, match=f"its validation part lack a sequence .such as {_name(1)}"):
        run_data.open_data(reading.read(config))
    parts |= {"train": [_name(2)], "validation": [_name(4)]}
    (tmp_path / "split.json").write_text(json.dumps(parts))
    values = reading.read(config)
    with pytest.raises(UserError, match="none of the 1 training cases with a reference has what"):
        run_checks.check_sequences(values, run_data.open_data(values))
    folder = tmp_path / "scans"
    for number in (1, 2):
        shutil.copytree(gaps / _name(number), folder / _name(number))
    config.data.data_dir, config.split.file = str(folder), ""
    with pytest.raises(UserError, match="no case with a reference has all of t1, t1ce, t2, flair"):
        run_data.open_data(reading.read(config))
    _remove(folder, 1, "flair")
    with pytest.raises(UserError, match="no case has flair; there are t1, t1ce, t2"):
        run_data.open_data(reading.read(config))


@pytest.mark.parametrize(
    ("dropout", "sees", "accepted"),
    [
        (0.3, "t1,t1ce,t2,flair", True),
        (0.0, "t1,t1ce,t2,flair", False),
        (0.0, "t1ce", True),  # what every case of the student has
        (0.3, "t1,t2", False),  # one of several teachers, which a case may leave with nothing
    ],
)
def test_a_given_teacher_knows_gaps(
    tmp_path: pathlib.Path, dropout: float, sees: str, accepted: bool
) -> None:
    config = common.base_config("teacher", "smoke")
    config.augment.modality_dropout, config.model.modalities = dropout, sees
    teacher = reading.read(config)
    (tmp_path / reading.CONFIG).write_text(teacher.to_json())
    config = common.base_config("student", "smoke")
    config.teacher.checkpoint = str(tmp_path)
    check = (tmp_path, model.of_experiment(teacher))
    teachers.check_incomplete(*check, reading.read(config))
    config.data.incomplete = True
    if accepted:
        teachers.check_incomplete(*check, reading.read(config))
        return
    with pytest.raises(UserError, match=r"nothing says that the teacher .* can do without"):
        teachers.check_incomplete(*check, reading.read(config))


@pytest.mark.once
@pytest.mark.usefixtures("without_report")
def test_a_student_and_its_teacher_train_on_cases_with_gaps(
    gaps: pathlib.Path, root: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = _config("student", gaps, root)
    config.train.steps = config.train.validate_every = config.teacher.steps = 2
    runner.run(reading.read(config), tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "run" / teachers.OWN):
        rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in rows if row["split"] == "train"]
        assert losses
        assert np.isfinite(losses).all()
        assert (folder / "evaluation" / "cases.csv").is_file()

"""A teacher that does not fit is found before anything is trained, and leaks are by patient."""

import dataclasses
import pathlib
import shutil

import jax
import pytest

from configs import common
from kdnet_jax import task as task_lib
from kdnet_jax.config import experiment as experiment_lib
from kdnet_jax.config import reading
from kdnet_jax.core import files
from kdnet_jax.data import splits
from kdnet_jax.errors import UserError
from kdnet_jax.experiment import given_teachers, runner
from kdnet_jax.models import networks, unet
from kdnet_jax.runs import calibration, model, model_folder, teachers

VISITS = ["BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS-GLI-00002-000"]


def _split(train: list[str], validation: list[str], test: list[str]) -> splits.Split:
    return splits.Split(tuple(train), tuple(validation), tuple(test), "unused")


PATIENTS = {name: name[:-4] for name in VISITS[1:]}


def _own_teacher(student: experiment_lib.Experiment, **data: str) -> model.Model:
    teacher = student.teacher.to_train
    changed = dataclasses.replace(teacher.data, **data)
    return model.of_experiment(dataclasses.replace(teacher, data=changed))


@pytest.mark.parametrize("part", ["train", "validation"])
def test_another_visit_of_a_test_patient_is_a_leak(tmp_path: pathlib.Path, part: str) -> None:
    known = {"train": [], "validation": [], "test": []} | {part: [VISITS[0]]}
    text = reading.read(common.base_config("teacher", "smoke")).to_json()
    (tmp_path / "config.json").write_text(text, "utf-8")
    (tmp_path / "split.json").write_text(str(known).replace("'", '"'), "utf-8")
    with pytest.raises(UserError, match=r"1 patients of this run's test cases.*BraTS-GLI-00001"):
        teachers.check_split(tmp_path, PATIENTS, [VISITS[1]])
    teachers.check_split(tmp_path, PATIENTS, [VISITS[2]])


def test_what_cannot_be_told_of_a_leak_is_said(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    text = reading.read(common.base_config("teacher", "smoke")).to_json()
    (tmp_path / "config.json").write_text(text, "utf-8")
    for name, said in ((VISITS[0], ""), ("BRATS_007", "of the 1 case that")):
        text = f'{{"train": ["{name}"], "validation": [], "test": []}}'
        (tmp_path / "split.json").write_text(text, "utf-8")
        teachers.check_split(tmp_path, PATIENTS, [VISITS[2]])
        assert said in caplog.text
        assert bool(caplog.text) == bool(said)


def _model_folder(folder: pathlib.Path, known: model.KnownCases) -> pathlib.Path:
    network = unet.UNetConfig(widths=(2, 4))
    params = networks.init_params(network, 1, jax.random.key(0))
    made = model.Model(task_lib.GLIOMA, "teacher", network, ("t2",), 1.5, (8, 8, 8))
    with files.new_folder(folder) as beside:
        model_folder.fill(beside, made, params, step=0, known=known, about={})
    return folder


def test_a_student_s_known_cases_end_where_its_teacher_s_do(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    teacher = _model_folder(
        tmp_path / "teacher", model.KnownCases(("a", VISITS[0]), complete=False)
    )
    config = common.base_config("student", "smoke")
    config.teacher.checkpoint = str(teacher)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(reading.read(config).to_json(), "utf-8")
    (run / "split.json").write_text('{"train": ["a"], "validation": ["b"], "test": []}', "utf-8")
    assert teachers.known_cases(run) == model.KnownCases(("a", "b", VISITS[0]), complete=False)
    # What is known of them still counts.
    with pytest.raises(UserError, match="1 patients of this run's test cases"):
        teachers.check_split(teacher, PATIENTS, [VISITS[1]])
    assert f"{teacher} does not say on all cases" in caplog.text
    shutil.rmtree(teacher)
    assert teachers.known_cases(run) == model.KnownCases(("a", "b"), complete=False)


def test_several_networks_teach_as_their_mean(tmp_path: pathlib.Path) -> None:
    config = common.base_config("student", "smoke")
    config.teacher.update(checkpoint=f"{tmp_path / 'a'};{tmp_path / 'b'}", weights=(1.0, 2.0))
    for seed, name in enumerate("ab"):
        network = unet.UNetConfig(widths=(2, 4, 4) if seed else (2, 3))
        params = networks.init_params(network, 1, jax.random.key(seed))
        sees = ("t2", "t1")[seed : seed + 1]
        made = model.Model(
            *(task_lib.GLIOMA, "teacher", network, sees, 1.5 + seed, (8, 10, 8)),
            thresholds=(0.3, 0.4, 0.5),
            calibration=calibration.Calibration(temperature=2.0),
        )
        with files.new_folder(tmp_path / name) as beside:
            known = model.KnownCases((VISITS[2 * seed],), complete=True)
            model_folder.fill(beside, made, params, step=0, known=known, about={})
    student = reading.read(config)
    with pytest.raises(UserError, match=r"their spacing is 1.5 and 2.5"):
        given_teachers.load(student.teacher, tmp_path / "run")
    about = tmp_path / "b" / "model.json"
    about.write_text(about.read_text("utf-8").replace("2.5", "1.5"), "utf-8")
    given = given_teachers.load(student.teacher, tmp_path / "run")
    # In the task's order.
    assert given.run.model.modalities == ("t1", "t2")
    assert (given.run.model.network.channels, given.run.model.network.weights) == (
        ((1,), (0,)),
        (1.0, 2.0),
    )
    assert [each.folder.name for each in given.members] == ["a", "b"]
    # The first one's windows, as far as both can halve them; what one network chose is not theirs.
    assert given.run.model.window == (8, 12, 8)
    assert given.run.model.thresholds == ()
    assert given.run.model.calibration == calibration.NONE
    # Both teach by how far they agree; one alone, or a folder of maps, cannot.
    config.distillation.update(confidence="agreement", latent_weight=0.0)
    config.model.modalities = "t1"
    config.data.spacing = 1.5
    by_agreement = reading.read(config)
    teachers.check_settings(tmp_path, given.run.model, by_agreement)
    alone = given.members[1].model
    with pytest.raises(UserError, match=r"confidence is agreement, but the teacher .* is one"):
        teachers.check_settings(tmp_path, alone, by_agreement)
    # What a student of both knows.
    (tmp_path / "config.json").write_text(student.to_json(), "utf-8")
    (tmp_path / "split.json").write_text('{"train": ["c"], "validation": [], "test": []}', "utf-8")
    assert teachers.known_cases(tmp_path).ids == ("c", VISITS[0], VISITS[2])
    twice = dataclasses.replace(student.teacher, checkpoint=f"{tmp_path / 'a'};{tmp_path / 'a'}")
    with pytest.raises(UserError, match="are the same network"):
        given_teachers.load(twice, tmp_path / "run")
    config.teacher.weights = (1.0,)
    with pytest.raises(UserError, match=r"teacher.weights has 1 numbers"):
        reading.read(config)


def test_who_made_maps_is_not_known(tmp_path: pathlib.Path) -> None:
    config = common.base_config("student", "smoke")
    config.teacher.maps, config.distillation.latent_weight = "maps", 0.0
    (tmp_path / "config.json").write_text(reading.read(config).to_json(), "utf-8")
    (tmp_path / "split.json").write_text(
        '{"train": ["a"], "validation": ["b"], "test": []}', "utf-8"
    )
    assert teachers.known_cases(tmp_path) == model.KnownCases(("a", "b"), complete=False)


def test_an_own_teacher_that_cannot_fit_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    config = common.base_config("student", "smoke")
    config.teacher.widths = (4, 16)
    with pytest.raises(UserError, match="they cannot be compared"):
        runner.run(reading.read(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_own_teacher_has_the_student_s_widths(tmp_path: pathlib.Path) -> None:
    config = common.base_config("student", "smoke")
    config.model.widths = (4, 8, 16)
    student = reading.read(config)
    teacher = _own_teacher(student)
    teachers.check_settings(tmp_path, teacher, student)
    assert teacher.network.widths == (4, 8, 16)


def test_a_teacher_that_does_not_see_the_student_s_channel_is_refused(
    tmp_path: pathlib.Path,
) -> None:
    config = common.base_config("student", "smoke")
    config.model.modalities, config.teacher.modalities = "t1ce", "t1,flair"
    student = reading.read(config)
    with pytest.raises(UserError, match=r"student sees t1ce, the teacher .* only t1, flair\. Set"):
        teachers.check_settings(tmp_path, _own_teacher(student), student)
    config.teacher.modalities = "t1ce,flair"
    student = reading.read(config)
    teachers.check_settings(tmp_path, _own_teacher(student), student)


def test_another_choice_for_the_cavity_is_refused(tmp_path: pathlib.Path) -> None:
    student = reading.read(common.base_config("student", "smoke"))
    teacher = _own_teacher(student, resection_cavity="NCR")
    with pytest.raises(UserError, match=r"config\.data\.resection_cavity=NCR"):
        teachers.check_settings(tmp_path, teacher, student)


def test_synthetic_cases_have_all_sequences(tmp_path: pathlib.Path) -> None:
    config = common.base_config("baseline", "smoke")
    config.data.root, config.data.phantom.cases = str(tmp_path / "datasets"), 3
    config.data.modalities = "t1ce"
    with pytest.raises(UserError, match="every synthetic case has t1,t1ce,t2,flair"):
        runner.run(reading.read(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""Runs that segment together: which may, what their average is, and what they have seen."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import nibabel as nib
import numpy as np
import pytest

from configs import common
from kdnet_jax.config import reading
from kdnet_jax.data import splits
from kdnet_jax.data.scans import prepare
from kdnet_jax.errors import UserError
from kdnet_jax.models import networks
from kdnet_jax.models.kernels import build
from kdnet_jax.prediction import confidence, ensembles, inference, predictors
from kdnet_jax.runs import calibration, trained
from kdnet_jax.training import checkpoint, optimizers, saved_checkpoints, steps
from tests.helpers import commands, glioma, kernels


def _write_run(folder: pathlib.Path, seed: int, changes: dict[str, Any] | None = None) -> None:
    """Writes a run with random weights, trained on the case that is called as its seed."""
    config = common.base_config("baseline", "smoke")
    config.model.widths = (2, 4)
    config.inference.patch = (8, 8, 8)
    config.update_from_flattened_dict(changes or {})
    values = reading.read(config)
    key = jax.random.key(seed)
    params = networks.init_params(values.network, len(values.modalities), key)
    # Larger weights: answers that differ.
    params = jax.tree.map(lambda x: 3 * x, params)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(values.to_json(), "utf-8")
    optimizer = optimizers.make_optimizer(values.optimizer, 1, 1)
    with checkpoint.RunCheckpoints(folder) as checkpoints:
        checkpoints.save(
            steps.init_state(params, optimizer),
            saved_checkpoints.Progress(1, {}, 0.5, 0.5, 0, 0.0, {}),
        )
    summaries = [_Summary(f"{seed}-{index}") for index in range(4)]
    split = splits.make_split(summaries, seed=0, fractions=(0.5, 0.25, 0.25))
    splits.save_split(split, folder / "split.json")


class _Summary:
    def __init__(self, name: str) -> None:
        self.case_id = self.patient_id = name
        self.grade = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("ensemble")
    for seed in (1, 2, 3):
        _write_run(folder / f"fold-{seed}", seed)
    changed = {
        "flair": {"model.modalities": "flair"},
        "spacing": {"data.spacing": 5.0},
        "outputs": {"model.head": "regions"},
        "window": {"inference.patch": (16, 16, 16)},
        "overlap": {"inference.overlap": 0.25},
        "mirror": {"inference.mirror": True},
        "wide": {"model.widths": (3, 4)},
        "turned": {"data.orientation": "LPS"},
        "cavity": {"data.resection_cavity": "NCR"},
        "two": {"model.modalities": "t1ce,flair"},
        "dropout": {"model.modalities": "t1ce,flair", "augment.modality_dropout": 0.3},
    }
    for index, (name, changes) in enumerate(changed.items()):
        _write_run(folder / name, 10 + index, changes)
    return folder


@pytest.fixture(scope="module")
def case() -> prepare.PreparedCase:
    rng = np.random.default_rng(0)
    data = np.zeros((14, 13, 12), np.float32)
    data[2:13, 1:12, 1:11] = rng.uniform(10, 20, (11, 11, 10))
    return prepare.prepare_arrays(
        {name: data**power for power, name in ((1, "t1ce"), (2, "flair"))},
        np.diag([-6.0, -6.0, 6.0, 1.0]),
        None,
        spacing=6.0,
        case_id="case",
        patient_id="case",
    )


def _load(folder: pathlib.Path, *names: str, **options: Any) -> ensembles.Ensemble:
    return ensembles.load_ensemble([folder / name for name in names], **options)


def _alone(folder: pathlib.Path, case: prepare.PreparedCase) -> np.ndarray:
    """The run's own answer, as the network's windows give it."""
    run = trained.load_run(folder)
    model = run.model
    predict = inference.make_predict(model.network.module().apply, model.head, model.mirror)
    return inference.sliding_window(
        lambda windows: predict(run.params, windows),
        case.image[..., :1],
        model.window,
        model.overlap,
    )


def test_the_average_is_that_of_the_members(
    folder: pathlib.Path, case: prepare.PreparedCase
) -> None:
    names = ("fold-1", "fold-2", "wide")  # other widths are another program, and no obstacle
    ensemble = _load(folder, *names, window_batch=3)
    prediction = ensemble.segment(case)
    members = [_alone(folder / name, case) for name in names]
    assert np.ptp(members, axis=0).max() > 0.05
    np.testing.assert_allclose(prediction.probabilities, np.mean(members, axis=0), atol=2e-6)
    expected = predictors.segmentation_on_scan(
        prediction.probabilities, glioma.SOFTMAX, case.geometry
    )
    np.testing.assert_array_equal(prediction.classes, expected)
    assert prediction.classes.shape == (14, 13, 12)
    assert prediction.entropy is None
    assert len(ensemble.predictor._compiled) == 2


def test_one_run_is_the_ensemble_of_one(folder: pathlib.Path, case: prepare.PreparedCase) -> None:
    prediction = _load(folder, "fold-1").segment(case)
    np.testing.assert_array_equal(prediction.probabilities, _alone(folder / "fold-1", case))


def test_a_run_s_calibration_reaches_its_probabilities_and_no_mask(
    folder: pathlib.Path, case: prepare.PreparedCase, tmp_path: pathlib.Path
) -> None:
    plain = _load(folder, "fold-1")
    run, before = plain.members[0], plain.segment(case, uncertainty=False)
    assert run.uncalibrated
    shutil.copytree(run.folder, tmp_path / "run")
    error = calibration.VolumeError(0.1, 0.2, 5)
    found = calibration.Calibration(2.0, (0.0, -1.0, 0.0, 0.0), (error, error, error))
    calibration.write(tmp_path / "run", found, run.model.head, run.params_hash, {"cases": 5.0})
    ensemble = _load(tmp_path, "run")
    assert not ensemble.members[0].uncalibrated
    after = ensemble.segment(case)
    np.testing.assert_array_equal(after.classes, before.classes)
    softer = np.sqrt(before.probabilities) * np.exp([0, -1, 0, 0])
    softer /= softer.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(after.probabilities, softer, atol=1e-6)
    # Of each region over the brain.
    told = ensemble.confidence(case, after)["WT"]
    p = softer[case.inside][:, 1:].sum(axis=-1)
    mask = before.probabilities[case.inside].argmax(axis=-1) > 0
    assert told.ml_expected == pytest.approx(p.sum() * 0.216, rel=1e-5)
    assert told.dice_expected == pytest.approx(2 * p[mask].sum() / (mask.sum() + p.sum()), rel=1e-5)
    low, high = confidence.volume_range(told.ml_expected, error)
    assert (told.ml_low, told.ml_high) == (low, min(high, case.inside.sum() * 0.216))
    # It is that of one network, and of these parameters.
    both = _load(tmp_path, "run", str(folder / "fold-2"))
    assert both.calibration == calibration.NONE
    calibration.write(tmp_path / "run", found, run.model.head, "other", {})
    assert _load(tmp_path, "run").calibration == calibration.NONE
    (tmp_path / "run" / calibration.FILE).write_text("{", "utf-8")
    with pytest.raises(UserError, match=r"calibration.json"):
        _load(tmp_path, "run")


def test_uncertainty_is_entropy_and_what_of_it_is_disagreement(
    folder: pathlib.Path, case: prepare.PreparedCase
) -> None:
    names = ("fold-1", "fold-2", "fold-3")
    # One window over the volume: the answers are the members alone.
    changes = {"inference.patch": (16, 16, 16)}
    for index, name in enumerate(names):
        if not (folder / f"one-{name}").exists():
            _write_run(folder / f"one-{name}", index + 1, changes)
    ones = [f"one-{name}" for name in names]
    prediction = _load(folder, *ones).segment(case, uncertainty=True)
    members = [_alone(folder / name, case) for name in ones]
    entropy = inference.entropy(np.mean(members, axis=0), glioma.SOFTMAX)
    np.testing.assert_allclose(prediction.entropy, entropy, atol=1e-5)
    single = np.mean([inference.entropy(each, glioma.SOFTMAX) for each in members], axis=0)
    np.testing.assert_allclose(prediction.mutual_information, entropy - single, atol=1e-5)
    assert prediction.mutual_information.max() > 1e-3
    assert prediction.mutual_information.min() >= 0


def test_mirrors_are_a_choice(folder: pathlib.Path, case: prepare.PreparedCase) -> None:
    plain, mirrored = _load(folder, "fold-1"), _load(folder, "fold-1", mirror=True)
    assert not plain.disagreeing
    assert mirrored.disagreeing
    assert _load(folder, "mirror").predictor.mirror
    assert not _load(folder, "mirror", mirror=False).predictor.mirror
    turned = [np.abs(plain.segment(case).probabilities - mirrored.segment(case).probabilities)]
    assert np.max(turned) > 1e-3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flair", r"sequences .* differ \(t1ce and flair\)"),
        ("spacing", r"spacings .* differ \(6 mm and 5 mm\)"),
        ("outputs", r"outputs .* differ"),
        ("window", r"windows .* differ \(8x8x8 and 16x16x16\)"),
        ("overlap", r"overlaps .* differ"),
        ("mirror", r"mirrors .* differ"),
        ("fold-1", "the same network"),
    ],
)
def test_runs_of_two_kinds_are_refused(folder: pathlib.Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        _load(folder, "fold-1", name)
    assert str(folder / name) in str(error.value)


def test_two_orientations_are_refused_with_what_every_command_can_do(folder: pathlib.Path) -> None:
    ensemble = _load(folder, "fold-1", "turned")
    with pytest.raises(UserError) as told:
        assert ensemble.orientation
    listed = f"{folder / 'fold-1'} with header, {folder / 'turned'} with LPS"
    assert f"{listed}. Name runs of one orientation, or" in str(told.value)
    assert "--orientation of kdnet_jax.predict" in str(told.value)


def test_runs_that_differ_in_the_resection_cavity_are_scored_only_as_asked(
    folder: pathlib.Path, tmp_path: pathlib.Path, command_env: dict[str, str]
) -> None:
    words = [f"--checkpoint={folder / 'fold-1'},{folder / 'cavity'}", f"--references={tmp_path}"]
    words.append(f"--output={tmp_path / 'out'}")
    done = commands.run("evaluate", *words, env=command_env)
    assert done.returncode == 2
    listed = f"{folder / 'fold-1'} as background, {folder / 'cavity'} as NCR"
    assert f"differently: {listed}. Say by --resection_cavity" in done.stderr


def test_a_common_choice_of_mirrors_makes_them_one_kind(folder: pathlib.Path) -> None:
    assert len(_load(folder, "fold-1", "mirror", mirror=True).members) == 2


def test_a_case_without_the_sequence(folder: pathlib.Path, case: prepare.PreparedCase) -> None:
    lacking = prepare.prepare_arrays(
        {"t2": np.pad(np.arange(27.0).reshape(3, 3, 3) + 1, 2)},
        np.eye(4),
        None,
        spacing=None,
        case_id="c",
        patient_id="c",
    )
    with pytest.raises(UserError, match="c: has t2, but the network needs t1ce"):
        _load(folder, "fold-1").segment(lacking)


def test_cases_that_a_member_has_seen(folder: pathlib.Path) -> None:
    known = _load(folder, "fold-1", "fold-2").known_cases()
    assert len(known) == 2
    for run, cases in known.items():
        parts = json.loads((run / "split.json").read_text())
        assert set(cases.ids) == {*parts["train"], *parts["validation"]}
        assert cases.complete


def test_what_is_no_run_is_told() -> None:
    with pytest.raises(UserError, match="is no run"):
        ensembles.load_ensemble([pathlib.Path("absent")])


def test_a_sequence_that_is_lacking_is_zero(
    folder: pathlib.Path, case: prepare.PreparedCase
) -> None:
    """As one that was dropped in training is, after the z-score."""
    zeroed = dataclasses.replace(case, image=case.image * np.float16([1, 0]))
    alone = dataclasses.replace(case, image=case.image[..., :1], modalities=("t1ce",))
    lacking = _load(folder, "dropout", sequences="t1ce")
    assert lacking.modalities == ("t1ce",)
    assert lacking.calibration == calibration.NONE
    found = lacking.segment(alone).probabilities
    np.testing.assert_array_equal(found, _load(folder, "dropout").segment(zeroed).probabilities)
    # Also where the case has it.
    np.testing.assert_array_equal(found, lacking.segment(case).probabilities)
    assert not np.array_equal(found, _load(folder, "dropout").segment(case).probabilities)
    assert _load(folder, "two", sequences="flair,t1ce").lacking == ()


def test_bfloat16_is_refused_where_it_would_be_slower(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "has_bfloat16", lambda: False)
    with pytest.raises(UserError, match=r"bfloat16 is asked for, .*avx512_bf16 or amx_bf16"):
        _load(folder, "fold-1", bfloat16=True)
    assert _load(folder, "fold-1", bfloat16=False).members[0].model.network.bfloat16 is False


@kernels.needs_bfloat16
def test_bfloat16_changes_probabilities_slightly_and_is_recorded(
    folder: pathlib.Path,
    case: prepare.PreparedCase,
    sample_dir: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    names = ("fold-1", "fold-2")
    half, whole = (
        _load(folder, *names, bfloat16=value).segment(case).probabilities for value in (True, None)
    )
    assert 1e-5 < np.abs(half - whole).max() < 0.1
    run = f"--checkpoint={folder / 'fold-1'}"
    scan = f"--input={min(sample_dir.glob('*/*_t1ce.nii.gz'))}"
    words = (run, scan, f"--output={tmp_path / 'mask.nii.gz'}")
    done = commands.run("predict", *words, "--bfloat16", f"--manifest={tmp_path / 'run.json'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run.json").read_text("utf-8"))["bfloat16"] is True
    # A mask in another type does not go on with it.
    done = commands.run("predict", *words, "--resume")
    assert done.returncode == 2
    assert "was not made by these checkpoints with these flags" in done.stderr


def test_sequences_that_a_network_needs_or_does_not_know_are_told(folder: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"two was trained without modality dropout, so it needs"):
        _load(folder, "two", sequences="t1ce")
    with pytest.raises(UserError, match=r"two was trained without"):
        _load(folder, "dropout", "two", sequences="T1ce,")
    with pytest.raises(UserError, match=r"sequences holds 't2', but the network sees t1ce, flair"):
        _load(folder, "dropout", sequences="t2")
    with pytest.raises(UserError, match=r"sequences holds 't1c'; did you mean 't1ce'"):
        _load(folder, "dropout", sequences="t1c")
    for given in ("t1ce,t1ce", " "):
        with pytest.raises(UserError, match=r"name each sequence once"):
            _load(folder, "dropout", sequences=given)


def test_commands_take_scans_of_some_sequences(
    folder: pathlib.Path, sample_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """One T1ce file is enough then, and a cohort's other sequences are left alone."""
    run, scan = f"--checkpoint={folder / 'dropout'}", min(sample_dir.glob("*/*_t1ce.nii.gz"))
    case_id, given = scan.parent.name, "--sequences=t1ce"
    mask = tmp_path / "mask.nii.gz"
    done = commands.run("predict", run, given, f"--input={scan}", f"--output={mask}")
    assert done.returncode == 0, done.stderr
    assert "trained on t1ce, flair: every input is taken as t1ce." in done.stdout
    # With other sequences the mask is another.
    both = (f"--input={scan.parent}", f"--output={mask}", "--resume")
    done = commands.run("predict", run, *both)
    assert done.returncode == 2
    done = commands.run("predict", run, f"--input={scan}", f"--output={tmp_path / 'new.nii.gz'}")
    assert done.returncode == 2
    assert "name those that there are (--sequences)" in done.stderr
    words = (f"--references={sample_dir}", f"--cases={case_id}", "--workers=1")
    done = commands.run("evaluate", run, given, *words, f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    both = mask, tmp_path / f"out/predictions/{case_id}.nii.gz"
    np.testing.assert_array_equal(*(np.asarray(nib.load(path).dataobj) for path in both))
    summary = json.loads((tmp_path / "out/evaluation/summary.json").read_text("utf-8"))
    assert summary["sequences"] == ["t1ce"]
    # Scores by other sequences do not take their place.
    done = commands.run("evaluate", run, *words, f"--output={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "whose sequences is ['t1ce'], not None" in done.stderr
    of_masks = (f"--predictions={tmp_path / 'out/predictions'}", f"--references={sample_dir}")
    done = commands.run("evaluate", *of_masks, given, f"--output={tmp_path / 'new'}")
    assert done.returncode == 2
    assert "--sequences belongs to --checkpoint" in done.stderr

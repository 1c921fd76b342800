"""The contact sheet of the augmentation, and its command with a user's mistakes."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from kdnet_jax import task as task_lib
from kdnet_jax.augment import augment
from kdnet_jax.data.scans import prepare
from kdnet_jax.data.sources import cases
from kdnet_jax.reports import augmentation_sheet
from tests.helpers import commands, made_tasks

PATCH = (16, 16, 16)


@pytest.fixture(scope="module")
def case(tiny_cohort: pathlib.Path) -> prepare.PreparedCase:
    return prepare.prepare_case(cases.find_cases(tiny_cohort).cases[0], spacing=None)[0]


def test_the_scene_is_the_crop_of_training_around_the_tumour(case: prepare.PreparedCase) -> None:
    chosen = augment.choose("nnunet")
    scene = augmentation_sheet.make_scene(case, "t2", PATCH, chosen, task=task_lib.GLIOMA)
    assert scene.image.shape == (*augment.source_patch(PATCH, chosen), 1)
    assert scene.label.shape == scene.image.shape[:3]
    plain = augmentation_sheet.make_scene(
        case, "t2", PATCH, augment.choose("plain"), task=task_lib.GLIOMA
    )
    np.testing.assert_array_equal(plain.label, scene.label[4:20, 4:20, 4:20])
    np.testing.assert_array_equal(plain.image, scene.image[4:20, 4:20, 4:20])
    # The slice with most tumour, and the sequence asked for.
    areas = (plain.label > 0).sum((1, 2))
    assert areas[plain.index] == areas.max() > 0
    shown = plain.image[plain.index, ..., 0]
    assert (shown != 0).mean() > 0.5
    assert any(np.isin(shown[shown != 0], plane[..., 2]).all() for plane in case.image)


def test_a_row_for_each_part_that_can_be_drawn(case: prepare.PreparedCase) -> None:
    chosen = augment.choose("plain", contrast_probability=0.5, flip_axes="w")
    scene = augmentation_sheet.make_scene(case, "t1ce", PATCH, chosen, task=task_lib.GLIOMA)
    rows = augmentation_sheet.make_rows(scene, chosen, jax.random.key(0))
    names = [row.name for row in rows]
    assert names == ["scale", "shift", "contrast", "flip_axes", *["as in training"] * 3]
    assert [row.chance for row in rows[:4]] == ["in 100%", "in 100%", "in 50%", "each in 50%"]
    assert [cell.caption for cell in rows[2].cells] == [
        "as it is",
        "× 0.75",
        "× 0.92",
        "× 1.08",
        "× 1.25",
    ]
    as_it_is, flipped = rows[3].cells
    np.testing.assert_array_equal(as_it_is.view, scene.image[scene.index, ..., 0])
    np.testing.assert_array_equal(flipped.view, as_it_is.view[:, ::-1])
    np.testing.assert_array_equal(flipped.classes, as_it_is.classes[:, ::-1])
    np.testing.assert_allclose(rows[0].cells[1].view, 0.9 * as_it_is.view, rtol=1e-5)
    captions = [cell.caption for row in rows[4:] for cell in row.cells]
    assert len(captions) == 15
    assert any("contrast" in text for text in captions)
    assert any("flip w" in text for text in captions)
    assert not any("geometry" in text for text in captions)
    figure = augmentation_sheet.draw(rows, "title", task=task_lib.GLIOMA)
    titles = [panel.get_title() for panel in figure.axes]
    assert [title for title in titles if title][:2] == ["as it is", "× 0.90"]


@pytest.mark.once
def test_the_command_draws_a_real_case(sample_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = commands.run(
        "preview_augmentation",
        "--config=configs/student.py:smoke",
        f"--config.data.data_dir={sample_dir}",
        "--config.data.spacing=3",
        "--config.loader.patch=(32,32,32)",
        "--config.augment.preset=none",
        "--config.augment.rotation=-10,10",
        "--config.augment.rotation_probability=1",
        f"--output={tmp_path}/sheet.png",
    )
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    assert pixels.shape[0] > 1000
    # Outlines in the orange of ET or the yellow of TC are there.
    assert (np.abs(pixels - [0xF0, 0xE4, 0x42]).max(-1) < 20).sum() > 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.augment.zoom_out=1.4,0.7"], "augment.zoom_out is (1.4, 0.7)"),
        (["--case=X", "--config.data.data_dir={cohort}"], "--case=X"),
    ],
)
def test_a_user_s_mistake_is_one_message(
    words: list[str], message: str, tiny_cohort: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    words = [word.format(cohort=tiny_cohort) for word in words]
    done = commands.run("preview_augmentation", *words, f"--output={tmp_path}/sheet.png")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_command_follows_the_task(tmp_path: pathlib.Path) -> None:
    folder = made_tasks.write_plain(tmp_path / "data", 2)
    words = (
        "preview_augmentation",
        "--config=configs/student.py:smoke",
        f"--config.task={folder}",
        "--config.model.modalities=t2",
        "--config.data.spacing=3,1,1",
        "--config.loader.patch=(16,32,32)",
        "--config.augment.preset=none",
        "--config.augment.noise=0.5",
        f"--output={tmp_path}/sheet.png",
    )
    done = commands.run(*words)
    assert done.returncode == 2
    assert "no synthetic cases of the task made prostate" in done.stderr
    done = commands.run(*words, f"--config.data.data_dir={folder}")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "sheet.png").height > 500

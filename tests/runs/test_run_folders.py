"""Folders of runs on a command line."""

import pathlib

import pytest

from kdnet_jax.errors import UserError
from kdnet_jax.runs import run_folders


@pytest.fixture
def folders(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b1", "b2", "c[1]", "d,e"):
        (tmp_path / name).mkdir()
    for run in ("b1", "b2"):
        (tmp_path / run / "config.json").touch()
    (tmp_path / "b3").touch()
    (tmp_path / "b4").mkdir()  # no run
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folders")
def test_folders_are_repeated_listed_or_matched() -> None:
    found = run_folders.expand("student", ["a, c[1]", "b*", "d,e"])
    assert [str(path) for path in found] == ["a", "c[1]", "b1", "b2", "d,e"]


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("word", ["x*", "x", "b3", "a,,b1", "b4*"])
def test_what_is_not_there_is_told(word: str) -> None:
    with pytest.raises(UserError, match=r"--student=.*no run matches"):
        run_folders.expand("student", [word])


@pytest.mark.usefixtures("folders")
def test_a_run_counts_once() -> None:
    with pytest.raises(UserError, match="--checkpoint names b1 twice"):
        run_folders.expand("checkpoint", ["b*", "b1"])

import pathlib
import re
import stat
import zipfile

import pytest

from kdnet_jax.errors import UserError
from kdnet_jax.interop import archives

WANTED = re.compile(r"(.*/)?wanted\.txt")


def write(path: pathlib.Path, **members: str) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def test_only_what_is_wanted_is_unpacked_and_gone_afterwards(tmp_path) -> None:
    path = write(tmp_path / "a.zip", **{"a/b/wanted.txt": "yes", "a/huge.bin": "no"})
    with archives.unpacked(path, WANTED) as folder:
        found = [each.relative_to(folder) for each in folder.rglob("*") if each.is_file()]
        assert found == [pathlib.Path("a/b/wanted.txt")]
        assert (folder / found[0]).read_text() == "yes"
    assert not folder.exists()


@pytest.mark.parametrize(
    "name",
    [
        "../wanted.txt",
        "a/../../wanted.txt",
        "/wanted.txt",
        "a\\..\\..\\wanted.txt",
        "C:/wanted.txt",
    ],
)
def test_a_name_that_leads_out_is_refused_and_nothing_written(tmp_path, name) -> None:
    inside = tmp_path / "deep" / "deeper"
    inside.mkdir(parents=True)
    path = write(inside / "a.zip", **{"wanted.txt": "first", name: "out"})
    with pytest.raises(UserError, match="leads out"), archives.unpacked(path, WANTED):
        pass
    assert [each.name for each in tmp_path.rglob("*") if each.is_file()] == ["a.zip"]


def test_a_link_is_refused(tmp_path) -> None:
    link = zipfile.ZipInfo("wanted.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="leads out"), archives.unpacked(archive.filename, WANTED):
        pass


def test_too_large_is_refused_before_it_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    path = write(tmp_path / "a.zip", **{"wanted.txt": "0" * 1001})
    with pytest.raises(UserError, match="unpacks to"), archives.unpacked(path, WANTED):
        pass


def test_a_member_that_declares_too_little_is_refused(tmp_path) -> None:
    path = write(tmp_path / "a.zip", **{"wanted.txt": "0" * 100_000})
    data = path.read_bytes()
    # Both headers: 100000 bytes become 10.
    path.write_bytes(data.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(UserError, match="cannot be unpacked"), archives.unpacked(path, WANTED):
        pass


@pytest.mark.parametrize("keep", [0, 10, 60])
def test_a_damaged_archive_is_refused(tmp_path, keep) -> None:
    path = write(tmp_path / "a.zip", **{"wanted.txt": "text"})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="cannot be unpacked"), archives.unpacked(path, WANTED):
        pass

"""Malformed scans and masks, as files."""

import dataclasses
import functools
import gzip
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, Final

import nibabel as nib
import numpy as np

EDGE: Final = 16
SPACING_MM: Final = 8.0
# As that of `tiny_cases`, whose files these stand among.
AFFINE: Final = np.diag([-SPACING_MM, -SPACING_MM, SPACING_MM, 1.0])
AFFINE[1, 3] = EDGE * SPACING_MM - 1
_MEBI: Final = 2**20


@dataclasses.dataclass(frozen=True)
class File:
    """A malformed file.

    Attributes:
        name: what is wrong with it.
        build: writes it to a path that ends in `suffix`.
        suffix: of the file's name.
        as_label: whether training refuses it too, as the reference of a case.
    """

    name: str
    build: Callable[[pathlib.Path], None]
    suffix: str = ".nii.gz"
    as_label: bool = True


def brain() -> np.ndarray:
    """Returns a small brain: noise in a box, 0 around it."""
    data = np.zeros((EDGE,) * 3, np.int16)
    data[3:13, 3:13, 3:13] = np.random.default_rng(0).integers(100, 200, (10,) * 3)
    return data


def labels() -> np.ndarray:
    """Returns a mask of the values of BraTS 2021."""
    data = np.zeros((EDGE,) * 3, np.uint8)
    data[4:9, 4:9, 4:9], data[5:8, 5:8, 5:8], data[6, 6, 6] = 2, 4, 1
    return data


def encode(data: np.ndarray, affine: np.ndarray = AFFINE, **fields: Any) -> bytes:
    """Returns an image as NIfTI-1, some fields of its header overwritten with what they hold."""
    raw = nib.Nifti1Image(data, affine, dtype=data.dtype).to_bytes()
    header = np.frombuffer(raw[:348], nib.nifti1.header_dtype).copy()
    for key, value in fields.items():
        header[key] = value
    return header.tobytes() + raw[348:]


def write(path: pathlib.Path, raw: bytes) -> None:
    """Writes bytes, compressed where the name says so."""
    path.write_bytes(gzip.compress(raw, 1) if path.suffix == ".gz" else raw)


def _header(name: str, data: np.ndarray | None = None, **fields: Any) -> File:
    return File(name, lambda path: write(path, encode(brain() if data is None else data, **fields)))


def _raw(name: str, make: Callable[[], bytes], suffix: str = ".nii.gz") -> File:
    """A file whose bytes are written as they are, whatever its name says."""
    return File(name, lambda path: path.write_bytes(make()), suffix)


def _changed(value: float, dtype: type = np.float32) -> np.ndarray:
    data = brain().astype(dtype)
    data[5, 5, 5] = value
    return data


def _image(name: str, make: Callable[[], np.ndarray], affine: np.ndarray = AFFINE) -> File:
    return File(name, lambda path: write(path, encode(make(), affine)))


def _dim(*sizes: int) -> list[int]:
    return [*sizes, *[1] * (8 - len(sizes))]


def _colours(channels: str) -> np.ndarray:
    return np.ones((EDGE,) * 3, [(channel, "u1") for channel in channels])


def _nifti2(sizes: tuple[int, ...]) -> bytes:
    header = nib.Nifti2Header()
    header.set_sform(AFFINE, 1)
    header["dim"] = [3, *sizes, *[1] * (7 - len(sizes))]
    header["vox_offset"], header["magic"] = 544, b"n+2\0\r\n\x1a\n"
    return header.binaryblock + bytes(4) + brain().tobytes()


def _bad_checksum() -> bytes:
    whole = bytearray(gzip.compress(encode(brain())))
    whole[-8] ^= 0xFF
    return bytes(whole)


@functools.cache
def zeros_gz(start: bytes, count: int) -> bytes:
    """Returns gzip of `start` and `count` zero bytes, without ever holding them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(start)]
    parts += [packer.compress(bytes(_MEBI)) for _ in range(count // _MEBI)]
    return b"".join([*parts, packer.flush()])


def _extension_bomb() -> bytes:
    """A header extension of size 0, which a reader may take for "all that follows"."""
    raw = encode(brain(), vox_offset=1e9)
    return zeros_gz(raw[:348] + b"\1\0\0\0", 512 * _MEBI)


def _offset_bomb() -> bytes:
    return zeros_gz(encode(brain(), vox_offset=2**29), 600 * _MEBI)


def _large(sizes: tuple[int, ...], datatype: int, held: int) -> bytes:
    raw = encode(brain(), dim=_dim(3, *sizes), datatype=datatype)
    return zeros_gz(raw[:352], held)


def _loop(path: pathlib.Path) -> None:
    other = path.with_name(f"back_{path.name}.link")
    os.symlink(path.name, other)
    os.symlink(other.name, path)


def _folder(path: pathlib.Path) -> None:
    path.mkdir()


BAD_ON_BOTH_SIDES: Final = (
    _raw("empty file", bytes),
    _raw("text", lambda: b"this is no scan\n" * 40),
    _raw("page of an expired download", lambda: b"<!DOCTYPE html><html>Sign in</html>" * 20),
    _raw("half a header", lambda: encode(brain())[:100], ".nii"),
    _raw("header without voxels", lambda: encode(brain())[:352], ".nii"),
    _raw("half of the voxels", lambda: encode(brain())[:4000], ".nii"),
    _raw("compressed file cut off", lambda: gzip.compress(encode(brain()))[:-200]),
    _raw("wrong checksum", _bad_checksum),
    _raw("not compressed, named .gz", lambda: encode(brain())),
    _raw("compressed, named .nii", lambda: gzip.compress(encode(brain())), ".nii"),
    _raw("DICOM", lambda: bytes(128) + b"DICM" + bytes(600), ".nii"),
    _raw("MGH", lambda: gzip.compress((1).to_bytes(4, "big") + bytes(600))),
    _raw("NIfTI-2 of 2^40 voxels an axis", lambda: _nifti2((2**40,) * 3), ".nii"),
    _raw("NIfTI-2 with sizes that overflow", lambda: _nifti2((2**31, 2**31, 4)), ".nii"),
    _raw("bomb behind the voxels", lambda: zeros_gz(encode(brain()), 600 * _MEBI)),
    _raw("bomb in a header extension", _extension_bomb),
    _raw("bomb before the voxels", _offset_bomb),
    _raw("sizes that the file cannot hold", lambda: _large((1000, 500, 500), 16, 4 * _MEBI)),
    _raw("more voxels than the limit", lambda: _large((1024, 1024, 1024), 2, 64 * _MEBI)),
    _header("one dimension", dim=_dim(1, 4096)),
    _header("two dimensions", dim=_dim(2, 64, 64)),
    _header("four dimensions", np.stack([brain()] * 3, -1)),
    _header("five dimensions", np.stack([brain()] * 3, -1)[..., None, :]),
    _header("no dimension", dim=_dim(0)),
    _header("nine dimensions", dim=_dim(9, 16, 16, 16)),
    _header("negative dimension", dim=_dim(3, 16, -16, 16)),
    _header("zero dimension", dim=_dim(3, 16, 0, 16)),
    _header("one slice", dim=_dim(3, 64, 64, 1)),
    _header("one voxel", dim=_dim(3, 1, 1, 1)),
    _header("huge dimensions", dim=_dim(3, 32767, 32767, 32767)),
    _header(
        "dimensions of the other byte order",
        dim=np.array(_dim(3, 16, 16, 16)).astype(">i2").view("<i2").tolist(),
    ),
    _header("unknown type of voxel", datatype=9999),
    _header("bits as voxels", datatype=1),
    _header("RGB", _colours("RGB")),
    _header("RGBA", _colours("RGBA")),
    _header("complex numbers", brain().astype(np.complex64)),
    _header("header of another size", sizeof_hdr=347),
    _header("no magic", magic=b"abcd"),
    _header("header of a pair", magic=b"ni1"),
    _header("offset beyond the end", vox_offset=1e6),
    _header("negative offset", vox_offset=-1000),
    _header("offset is NaN", vox_offset=np.nan),
    _header("offset is infinite", vox_offset=np.inf),
    _header("offset within the header", vox_offset=100),
    _header("sform of zeros", srow_x=0, srow_y=0, srow_z=0, sform_code=1),
    _header("sform of NaN", srow_x=np.nan, sform_code=1),
    _header("infinite sform", srow_y=np.inf, sform_code=1),
    _header("sform of rank 2", srow_z=[-8, 0, 0, 0], sform_code=1),
    _header("voxels of size 0", sform_code=0, qform_code=0, pixdim=0),
    _header("voxels of size NaN", sform_code=0, qform_code=0, pixdim=np.nan),
    _header("no rotation in the qform", sform_code=0, qform_code=1, quatern_b=1, quatern_c=1),
    _header("NaN in the qform", sform_code=0, qform_code=1, quatern_b=np.nan),
    _header("infinite slope", scl_slope=np.inf),
    _image("one NaN", lambda: _changed(np.nan)),
    _image("one infinity", lambda: _changed(-np.inf)),
    _image("all NaN", lambda: np.full((EDGE,) * 3, np.nan, np.float32)),
    File("folder in place of a file", _folder),
    File("link in a circle", _loop),
    File("link to nothing", lambda path: os.symlink("nowhere", path)),
    File("pipe", lambda path: os.mkfifo(path)),
    File("link to a device", lambda path: os.symlink("/dev/zero", path)),
)

# Malformed as a scan, and possible or of another message as a mask.
BAD_SCANS: Final = (
    _image("beyond float32", lambda: _changed(1e300, np.float64)),
    _image("constant", lambda: np.full((EDGE,) * 3, 7, np.int16)),
    _image("all 0", lambda: np.zeros((EDGE,) * 3, np.int16)),
    _image("one value in the brain", lambda: (brain() > 0).astype(np.uint8)),
    _header("slope that makes infinities", brain().astype(np.float32), scl_slope=3e38),
)

BAD_MASKS: Final = (
    _image("probabilities", lambda: labels() * np.float32(0.3)),
    _image("a value of -1", lambda: labels().astype(np.int16) - 1),
    _image("an unknown value", lambda: np.where(labels() == 2, 7, labels()).astype(np.uint8)),
    _image("intensities", brain),
    _image("values beyond int64", lambda: labels() * np.float64(1e300)),
    _image("values of 10^18", lambda: labels().astype(np.int64) * 10**18),
    _image(
        "a channel for each class",
        lambda: np.stack([labels() == n for n in range(4)], -1).astype(np.uint8),
    ),
    _image("another grid", lambda: labels()[:-2]),
    File(
        "another place",
        lambda path: write(path, encode(labels(), AFFINE + np.pad([[30.0]], ((0, 3), (3, 0))))),
        as_label=False,
    ),
    _header("slope of a half", labels(), scl_slope=0.5, scl_inter=0.25),
)


def big_endian(path: pathlib.Path) -> None:
    """Writes a sound scan in the other byte order."""
    image = nib.Nifti1Image(brain(), AFFINE)
    header = image.header.as_byteswapped(">" if header_is_little(image) else "<")
    data = brain().astype(np.dtype(np.int16).newbyteorder(">"))
    write(path, nib.Nifti1Image(data, AFFINE, header).to_bytes())


def header_is_little(image: nib.Nifti1Image) -> bool:
    """Whether the header is stored with the least byte first."""
    return image.header.endianness == "<"

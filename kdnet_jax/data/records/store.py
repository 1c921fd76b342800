"""Prepared cases as TFDS records, and a store that reads them back by index.

A record's arrays are stored as plain bytes: the array_record file compresses every record with
zstd. zlib on top of that (`encoding="zlib"`) made the files 3 % smaller and the reading of a case
twice as slow.
"""

import dataclasses
import json
import pathlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
import psutil
import tensorflow_datasets as tfds

from kdnet_jax import dataset_json
from kdnet_jax import task as task_lib
from kdnet_jax.core import typed
from kdnet_jax.data.records import records
from kdnet_jax.data.scans import geometry as geometry_lib
from kdnet_jax.data.scans import prepare
from kdnet_jax.errors import UserError

# The split that holds every case: which of them train is decided later, by patient (splits.py).
SPLIT = "cases"
# The readable description of a built dataset, beside its records.
METADATA_FILE = "build.json"
# What each description of a built dataset must hold: this project's, and that of TFDS.
_DESCRIPTIONS = {
    METADATA_FILE: (
        *("modalities", "cases", "fingerprint", "notes", "label_convention", "skipped"),
        "task",
    ),
    "dataset_info.json": ("name", "splits", "version"),
}

# Stands for an array that a case has not. TFDS cannot decode a volume of fewer bytes than axes.
_NO_VOXELS = np.zeros((1, 1, 8), np.uint8)


def features(
    modalities: Sequence[str], task: task_lib.Task = task_lib.DEFAULT
) -> tfds.features.FeaturesDict:
    """Returns the record of a case: image float16 "d h w m", label and reference uint8, texts.

    `label` is on the working grid, `reference` on the scan's own; a case without a reference
    holds a few zeros for them and `has_reference` false. `geometry` is JSON, `grade` may be empty.
    `foreground`, 0 or 1, is there for tasks whose images do not show it.
    """
    volume = tfds.features.Tensor(shape=(None, None, None), dtype=np.uint8, encoding="bytes")
    image_shape = (None, None, None, len(modalities))
    more = {} if all(task.zero_is_background()) else {"foreground": volume}
    return tfds.features.FeaturesDict(
        {
            "case_id": tfds.features.Text(),
            "patient_id": tfds.features.Text(),
            "grade": tfds.features.Text(),
            "geometry": tfds.features.Text(),
            "has_reference": np.bool_,
            "image": tfds.features.Tensor(shape=image_shape, dtype=np.float16, encoding="bytes"),
            "label": volume,
            "reference": volume,
            **more,
        }
    )


def to_record(case: prepare.PreparedCase) -> typed.Json:
    """Returns the case as the values of `features` for its channels and its task."""
    has_reference = case.label is not None and case.reference is not None
    more = {} if case.foreground is None else {"foreground": case.foreground.astype(np.uint8)}
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "grade": case.grade or "",
        "geometry": case.geometry.to_json(),
        "has_reference": has_reference,
        "image": case.image,
        "label": case.label if has_reference else _NO_VOXELS,
        "reference": case.reference if has_reference else _NO_VOXELS,
        **more,
    }


def from_record(record: typed.JsonView, modalities: Sequence[str]) -> prepare.PreparedCase:
    """Returns the case of a decoded record; its arrays are read-only views of the record."""
    has_reference = bool(record["has_reference"])
    return prepare.PreparedCase(
        case_id=_text(record["case_id"]),
        patient_id=_text(record["patient_id"]),
        grade=_text(record["grade"]) or None,
        modalities=tuple(modalities),
        image=record["image"],
        label=record["label"] if has_reference else None,
        reference=record["reference"] if has_reference else None,
        geometry=geometry_lib.Geometry.from_json(_text(record["geometry"])),
        foreground=record["foreground"].view(bool) if "foreground" in record else None,
    )


def _text(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


@dataclasses.dataclass(frozen=True)
class CaseSummary:
    """What is known of a case without decoding its image.

    `class_voxels` counts the voxels of classes 1, 2, ... on the working grid, None without a
    reference; `decoded_bytes` is the memory that the decoded case takes; `shape` is the working
    grid's, None in datasets that were built before it was noted; `absent` are the channels that
    the case lacks, of which its image is 0.
    """

    case_id: str
    patient_id: str
    grade: str | None
    class_voxels: tuple[int, ...] | None = None
    decoded_bytes: int = 0
    shape: tuple[int, int, int] | None = None
    absent: tuple[str, ...] = ()

    def to_json(self) -> typed.Json:
        """Returns the row of the built dataset's description."""
        row = dataclasses.asdict(self)
        return row if self.absent else {key: row[key] for key in row if key != "absent"}


def summarise(case: prepare.PreparedCase, task: task_lib.Task = task_lib.DEFAULT) -> CaseSummary:
    """Returns the summary of a decoded case."""
    counts = None
    if case.label is not None:
        histogram = np.bincount(case.label.reshape(-1), minlength=len(task.classes))
        counts = tuple(int(n) for n in histogram[1 : len(task.classes)])
    return CaseSummary(
        case.case_id,
        case.patient_id,
        case.grade,
        counts,
        _decoded_bytes(case),
        tuple(case.image.shape[:3]),
        case.absent,
    )


def _decoded_bytes(case: prepare.PreparedCase) -> int:
    arrays = (case.image, case.label, case.reference, case.foreground)
    return sum(array.nbytes for array in arrays if array is not None)


class CaseStore:
    """A sequence of prepared cases with an optional memory of decoded ones; thread safe.

    Attributes:
        modalities: the channels of every image, in the order of its last axis.
        task: what is segmented, with the statistics of its "ct" channels.
        summaries: one per case, in the order of the indices.
        fingerprint: names the content: equal fingerprints mean equal cases and preparation.
        notes: what the build reported about the cases.
        label_convention: label values of files that are written for these cases.
        folder: where the records lie, None for records in memory.
        cache_bytes: decoded cases are kept up to this size, the longest unused is dropped first;
            at first none.

    Args:
        source: decoded records by index, e.g. a TFDS data source.
        modalities: see above.
        task: see above.
        summaries: see above.
        fingerprint: see above.
        notes: see above.
        label_convention: see above.
        folder: see above.
    """

    def __init__(
        self,
        source: Sequence[typed.JsonView],
        modalities: Sequence[str],
        *,
        task: task_lib.Task = task_lib.DEFAULT,
        summaries: Sequence[CaseSummary],
        fingerprint: str,
        notes: Sequence[str] = (),
        label_convention: str = "kdnet",
        folder: pathlib.Path | None = None,
    ) -> None:
        self._source = source
        self.modalities = tuple(modalities)
        self.task = task
        self.summaries = list(summaries)
        self.fingerprint = fingerprint
        self.cache_bytes = 0
        self.notes = list(notes)
        self.label_convention = label_convention
        self.folder = folder
        self._cache: OrderedDict[int, prepare.PreparedCase] = OrderedDict()
        self._cached_bytes = 0
        self._cache_lock = threading.Lock()
        # One lock per case: a second thread that wants the same case waits for the first's.
        self._case_locks = [threading.Lock() for _ in range(len(source))]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> prepare.PreparedCase:
        """Returns a case, from memory or decoded.

        Raises:
            records.UnreadableCaseError: its file is missing or damaged.
        """
        index = range(len(self))[index]
        with self._case_locks[index]:
            case = self._recall(index)
            if case is None:
                case = self.read(index)
                self._remember(index, case)
        return case

    def read(self, index: int) -> prepare.PreparedCase:
        """Decodes a case that is not to be kept."""
        case = from_record(self._source[index], self.modalities)
        return dataclasses.replace(case, absent=self.summaries[index].absent)

    def check_files(self, indices: Iterable[int]) -> None:
        """Looks at the files of these cases, without reading a case. In memory there are none.

        Raises:
            records.UnreadableCaseError: a file is missing or was cut off.
        """
        if isinstance(self._source, records.RecordFiles):
            self._source.check(indices)

    def shape(self, index: int) -> tuple[int, int, int]:
        """Returns the size of a case on the working grid; decodes it once if no build noted it."""
        known = self.summaries[index].shape
        if known is None:
            known = typed.triple(self.read(index).image.shape[:3])
            self.summaries[index] = dataclasses.replace(self.summaries[index], shape=known)
        return known

    @property
    def decoded_bytes(self) -> int:
        """The memory that all decoded cases take together."""
        return sum(summary.decoded_bytes for summary in self.summaries)

    def _recall(self, index: int) -> prepare.PreparedCase | None:
        with self._cache_lock:
            case = self._cache.get(index)
            if case is not None:
                self._cache.move_to_end(index)
            return case

    def _remember(self, index: int, case: prepare.PreparedCase) -> None:
        size = _decoded_bytes(case)
        with self._cache_lock:
            if size > self.cache_bytes:
                return
            self._cache[index] = case
            self._cached_bytes += size
            while self._cached_bytes > self.cache_bytes:
                _, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= _decoded_bytes(dropped)


def open_store(builder: tfds.core.DatasetBuilder, *, damaged: bool = False) -> CaseStore:
    """Opens the records that `builder` wrote.

    Args:
        builder: of the dataset.
        damaged: open it although files are missing or were cut off; the cases in them cannot be
            read then.

    Raises:
        UserError: the dataset is not there, or some of its files are missing or cut off.
    """
    folder = pathlib.Path(builder.data_dir)
    metadata = read_metadata(folder)
    source = records.RecordFiles(builder, SPLIT, [row["case_id"] for row in metadata["cases"]])
    opened = CaseStore(
        source,
        metadata["modalities"],
        task=dataset_json.from_json(metadata["task"], f"{folder / METADATA_FILE}: 'task'"),
        summaries=[_summary_from_json(row) for row in metadata["cases"]],
        fingerprint=metadata["fingerprint"],
        notes=metadata["notes"],
        label_convention=metadata["label_convention"],
        folder=folder,
    )
    if not damaged:
        opened.check_files(range(len(opened)))
    return opened


def read_metadata(folder: pathlib.Path) -> typed.Json:
    """Reads the description beside the records of a built dataset; looks at that of TFDS too.

    Raises:
        UserError: one is missing or damaged.
    """
    return {name: _read_description(folder, name) for name in _DESCRIPTIONS}[METADATA_FILE]


def _read_description(folder: pathlib.Path, name: str) -> typed.Json:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        missing = [key for key in _DESCRIPTIONS[name] if key not in found]
        finding = f"it holds no {missing[0]!r}" if missing else ""
    except FileNotFoundError:
        finding = "the file is missing"
    except OSError as error:
        finding = str(error.strerror)
    except (TypeError, ValueError) as error:
        finding = f"the file is damaged ({error})"
    if finding:
        raise UserError(f"{folder / name}: cannot be read: {finding}. {records.rebuild(folder)}")
    return found


def _summary_from_json(row: typed.Json) -> CaseSummary:
    # JSON has no tuples.
    values: typed.Json = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return CaseSummary(**values)


def available_memory(cgroup: pathlib.Path = pathlib.Path("/sys/fs/cgroup")) -> int:
    """Returns the bytes that this process can still take: free memory, or a container's rest."""
    available = psutil.virtual_memory().available
    limit_file, used_file = cgroup / "memory.max", cgroup / "memory.current"
    if not limit_file.exists() or not (limit := limit_file.read_text().strip()).isdigit():
        return available
    # Cached file pages count as used, and are given back as soon as somebody asks.
    stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    rest = int(limit) - int(used_file.read_text()) + int(stat["inactive_file"])
    return max(0, min(available, rest))

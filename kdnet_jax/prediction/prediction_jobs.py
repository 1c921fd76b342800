"""Jobs of `predict`: its scans and the place of each output, settled before the first."""

import dataclasses
import itertools
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kdnet_jax import task as task_lib
from kdnet_jax.data.scans import dicom, dicom_stack, nifti, nifti_header
from kdnet_jax.data.sources import cases, decathlon, labels, names
from kdnet_jax.errors import UnknownLayoutError, UserError

_LOG = logging.getLogger(__name__)

_NIFTI = (".nii", ".nii.gz")
_SEGMENTATION = ".dcm"
Source = cases.Source | dicom.Series
_CHANNEL_NUMBER = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_TABLES = (".csv", ".json")
_SEQUENCE_LIKE = re.compile(
    r"(?:(?<=[_. -])|^)(?:t[12](?!\d)|flair|seg|mask|label)[^_. -]*", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Job:
    """One scan to segment.

    Attributes:
        name: what the scan is called.
        images: sequence -> file, (file, channel), or series of DICOM.
        output: where the mask goes: a NIfTI file, or of a series a DICOM SEG.
        overlay: where the picture goes, or `None`.
        probabilities: where the probabilities go, or `None`; beside them, `.json`, what they are.
        entropy: where the entropy goes, or `None`.
        mutual_information: likewise.
        reference: the series of DICOM that the scan, a file, was made from, or `None`.
    """

    name: str
    images: Mapping[str, Source]
    output: pathlib.Path
    overlay: pathlib.Path | None = None
    probabilities: pathlib.Path | None = None
    entropy: pathlib.Path | None = None
    mutual_information: pathlib.Path | None = None
    reference: dicom.Series | None = None

    @property
    def scanned(self) -> dicom.Series | None:
        """The series of DICOM that is the scan, if it is one."""
        first = next(iter(self.images.values()))
        return first if isinstance(first, dicom.Series) else None

    @property
    def series(self) -> dicom.Series | None:
        """The series of DICOM that a SEG refers to, if there is one."""
        return self.scanned or self.reference

    @property
    def is_dicom(self) -> bool:
        """Whether the mask is a DICOM SEG."""
        return self.output.suffix.lower() == _SEGMENTATION

    @property
    def outputs(self) -> list[pathlib.Path]:
        """All files that are written."""
        paths = [self.output, self.overlay, self.probabilities]
        paths += [description(self.probabilities)] if self.probabilities else []
        return [path for path in [*paths, self.entropy, self.mutual_information] if path]


def description(probabilities: pathlib.Path) -> pathlib.Path:
    """Returns the file beside a file of probabilities that says what its channels are."""
    return probabilities.with_name(f"{stem(probabilities)}.json")


def find_scans(
    inputs: list[pathlib.Path],
    modalities: tuple[str, ...],
    task: task_lib.Task,
    series: str = "",
) -> list[tuple[str, Mapping[str, Source]]]:
    """Returns (name, sequence -> file or series) of every scan or case that the inputs name.

    A file is a scan of the network's one sequence. In a folder, cases in a known layout are taken
    by their sequence; where there is none and the network has one sequence, each file is a scan.
    Of a folder or zip of DICOM, one series is (`dicom.choose`).

    Args:
        inputs: files and folders.
        modalities: the network's sequences.
        task: what is segmented.
        series: number or UID of the series of DICOM; "": it is found by its tags.

    Raises:
        UserError: for a missing path, an empty folder, one file where several are needed, or a
            series that cannot be told.
    """
    found: list[tuple[str, Mapping[str, Source]]] = []
    first, *others = modalities
    of_dicom = {path for path in inputs if dicom.is_dicom(path)}
    if series and not of_dicom:
        raise UserError(f"--series={series}: no --input is a folder, zip or file of DICOM.")
    for path in inputs:
        if path in of_dicom:
            if others:
                raise UserError(
                    f"{path}: is DICOM, and this network needs {', '.join(modalities)} of each "
                    "case. Convert them to .nii.gz in the folder of a case, or use a student of "
                    "one sequence."
                )
            found.append((stem(path.resolve()), {first: series_of(path, first, task, series)}))
        elif path.is_dir():
            found += _scans_of_folder(path, modalities, task)
        elif others:
            raise UserError(
                f"{path}: this network needs {', '.join(modalities)} of each case. Give the folder "
                "of the case, or of the cases."
            )
        elif not os.path.lexists(path):
            raise UserError(f"--input={path}: there is no such file or folder.")
        else:
            _warn_of_name(path, first, task)
            found.append((stem(path), {first: path}))
    names = [name for name, _ in found]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(
            f"Several inputs are called {doubled[0]!r}, so their masks would overwrite each other. "
            "Rename them, or predict them one by one."
        )
    return found


def series_of(
    path: pathlib.Path, modality: str, task: task_lib.Task, asked: str = ""
) -> dicom.Series:
    """Returns the series of DICOM that is the network's sequence, and says which it is.

    Raises:
        UserError: it cannot be told (`dicom.choose`), or nothing can be read.
    """
    found = dicom.find(path)
    ct = task.channel(modality).normalisation == "ct"
    glioma = labels.is_brats(task)
    called = {each.uid: names.read(each.description).sequence or "" for each in found}
    kind = "CT" if ct else "MR" if glioma else ""
    chosen, notes = dicom.choose(found, kind, called if glioma else {}, modality, asked)
    for note in notes:
        _LOG.info(note)
    return chosen


def _scans_of_folder(
    folder: pathlib.Path, modalities: tuple[str, ...], task: task_lib.Task
) -> list[tuple[str, dict[str, cases.Source]]]:
    try:
        cohort = cases.find_cases(folder, "auto", modalities, labelled=False, task=task)
    except UnknownLayoutError as error:
        readable = (*nifti_header.SUFFIXES, *nifti_header.ITK_SUFFIXES)
        files = sorted(
            path
            for path in folder.iterdir()
            if path.name.lower().endswith(readable) and not path.name.startswith(".")
        )
        if not labels.is_brats(task) and (found := _numbered(folder, files, modalities, task)):
            return found
        first, *others = modalities
        if others or not files:
            raise UserError(f"--input={folder}: {error}") from error
        _refuse_numbered_channels(folder, files, first)
        _LOG.info(f"{folder}: no known layout; each of its {len(files)} files is taken as a scan")
        for path in files:
            _warn_of_name(path, first, task)
        return [(stem(path), {first: path}) for path in files]
    for note in cohort.notes:
        _LOG.info(f"note: {note}")
    return [
        (case.case_id, {name: case.images[name] for name in modalities}) for case in cohort.cases
    ]


def _numbered(
    folder: pathlib.Path,
    files: Sequence[pathlib.Path],
    modalities: tuple[str, ...],
    task: task_lib.Task,
) -> list[tuple[str, dict[str, cases.Source]]]:
    """Returns the cases of a folder in nnU-Net's names, CASE_0000 and so on; empty: it is none.

    The numbers are those of the task's channels.

    Raises:
        UserError: a case lacks a channel that the network sees.
    """
    parts = [part for path in files if (part := _CHANNEL_NUMBER.fullmatch(stem(path)))]
    if not files or len(parts) < len(files):
        return []
    by_case: dict[str, dict[int, pathlib.Path]] = {}
    for path, part in zip(files, parts, strict=True):
        by_case.setdefault(part["case"], {})[int(part["channel"])] = path
    wanted = {name: task.modalities.index(name) for name in modalities}
    for case, channels in by_case.items():
        if absent := [number for number in wanted.values() if number not in channels]:
            raise UserError(
                f"--input={folder}: {case} has no file {case}_{absent[0]:04d}, which is the "
                f"channel {task.modalities[absent[0]]} of the task {task.name}; expected it beside "
                "the others, as in nnU-Net's imagesTs."
            )
    listed = ", ".join(f"_{number:04d} as {name}" for name, number in wanted.items())
    _LOG.info(f"{folder}: {len(by_case)} cases in nnU-Net's names; {listed}")
    return [
        (case, {name: channels[number] for name, number in wanted.items()})
        for case, channels in sorted(by_case.items())
    ]


def _refuse_numbered_channels(
    folder: pathlib.Path, files: Sequence[pathlib.Path], modality: str
) -> None:
    """Refuses files of several channels in the names of nnU-Net, of which one is the sequence."""
    endings = [stem(path)[-5:] for path in files]
    if len({*endings}) > 1 and {*endings} <= {f"_{channel:04d}" for channel in range(4)}:
        raise UserError(
            f"--input={folder}: its files end in {', '.join(sorted({*endings}))}, which are the "
            f"channels of nnU-Net, and the network takes one, {modality}. Give the files of that "
            'channel alone (the "channel_names" of nnU-Net\'s dataset.json say which it is).'
        )


def _warn_of_name(path: pathlib.Path, modality: str, task: task_lib.Task) -> None:
    """Warns of a file whose name says that it is not, or may not be, the network's sequence."""
    if not labels.is_brats(task):  # The names of other channels are not known so well.
        return
    name = names.read(stem(path), path.absolute().parent.name)
    says = name.sequence or name.aside or (name.doubt and f"one that {name.doubt}")
    if says and says != modality:
        _LOG.info(
            f"warning: {path} is named as {says}, but the network was trained on {modality}. "
            "Its mask means nothing if it is."
        )
    alike = [] if says else _SEQUENCE_LIKE.findall(stem(path))
    if unknown := [word for word in alike if names.SEQUENCES.get(word.lower()) != modality]:
        _LOG.info(
            f"warning: {path}: it is not understood what {unknown[0]!r} in its name says; the "
            f"network was trained on {modality}. Its mask means nothing if it is another image."
        )


def stem(path: pathlib.Path) -> str:
    """Returns the name of an image's file without its ending."""
    return nifti_header.stem(path)


def plan(
    scans: Sequence[tuple[str, Mapping[str, Source]]],
    output: pathlib.Path,
    *,
    overlay: pathlib.Path | None = None,
    probabilities: bool = False,
    uncertainty: bool = False,
    volumes: pathlib.Path | None = None,
    record: pathlib.Path | None = None,
    reference: dicom.Series | None = None,
) -> list[Job]:
    """Says where every file goes, before the first is made.

    Args:
        scans: name, and sequence -> file.
        output: the mask of one scan, or a folder.
        overlay: the picture of one scan, or a folder.
        probabilities: also `<mask>_prob.nii.gz`.
        uncertainty: also `<mask>_entropy.nii.gz` and `<mask>_mutual_information.nii.gz`.
        volumes: the table of all scans.
        record: of the command.
        reference: the series of DICOM that the one scan, a file, was made from.

    Raises:
        UserError: a file name does not fit, or a file would overwrite an input or another output.
    """
    file = output.name.lower().endswith((*_NIFTI, _SEGMENTATION))
    single = len(scans) == 1 and file
    if len(scans) > 1 and file:
        raise UserError(
            f"--output={output} is one file, but there are {len(scans)} inputs. Give a folder."
        )
    picture = overlay is not None and overlay.suffix.lower() == ".png"
    one_picture = overlay is not None and (single or picture)
    if one_picture and (len(scans) > 1 or not picture):
        raise UserError(
            f"--overlay={overlay}: give a name that ends in .png for one scan, or a folder for "
            "several."
        )
    if volumes is not None and volumes.suffix.lower() not in _TABLES:
        raise UserError(f"--volumes={volumes}: give a name that ends in .csv or .json.")
    if record is not None and record.suffix.lower() != ".json":
        raise UserError(f"--manifest={record}: give a name that ends in .json.")
    jobs = []
    for name, images in scans:
        mask = output if single else output / f"{name}.nii.gz"
        beside = {
            kind: mask.with_name(f"{stem(mask)}_{suffix}.nii.gz") if wanted else None
            for kind, suffix, wanted in (
                ("probabilities", "prob", probabilities),
                ("entropy", "entropy", uncertainty),
                ("mutual_information", "mutual_information", uncertainty),
            )
        }
        picture = overlay if one_picture or overlay is None else overlay / f"{name}.png"
        jobs.append(Job(name, images, mask, picture, **beside, reference=reference))
    for job in jobs:
        if job.is_dicom and not job.series:
            raise UserError(
                f"--output={output}: a DICOM SEG refers to a series of DICOM, and the input is "
                "another file. Give the series that it was made from (--dicom=FOLDER), or an "
                "output that ends in .nii.gz."
            )
        if reference and (job.scanned or not job.is_dicom):
            raise UserError(
                "--dicom: names the series that a .nii.gz was made from, for an output that ends "
                "in .dcm. Leave it out."
            )
    _check_collisions(jobs, [path for path in (volumes, record) if path])
    return jobs


def check_places(paths: Iterable[pathlib.Path]) -> None:
    """Refuses files that cannot be written where they are to be, before the first is made.

    Raises:
        UserError: a folder has the file's name, a file that of one of its folders, or the folder
            may not be written.
    """
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the name of a file.")
        folder = next(each for each in path.absolute().parents if os.path.lexists(each))
        if not folder.is_dir():
            raise UserError(f"{path} cannot be written: {folder} is no folder. Give another name.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{path} cannot be written: {folder} may not be changed (its rights).")


def check_headers(scans: Iterable[Mapping[str, Source]], task: task_lib.Task) -> None:
    """Refuses scans that cannot be used as far as their headers tell, before the first is made.

    Args:
        scans: the files of each, sequence -> file, (file, channel), or series.
        task: what is segmented in them.

    Raises:
        UserError: with every file that is wrong.
    """
    wrong = [error for images in scans for error in _header_errors(images, task)]
    if len(wrong) == 1:
        raise UserError(wrong[0])
    if wrong:
        listed = "".join(f"\n  {error}" for error in wrong)
        raise UserError(f"{len(wrong)} files cannot be used; no scan was segmented:{listed}")


def _header_errors(images: Mapping[str, Source], task: task_lib.Task) -> Iterator[str]:
    files: list[cases.Source] = []
    for source in images.values():
        if not isinstance(source, dicom.Series):
            files.append(source)
            continue
        try:
            dicom_stack.check(source)
        except UserError as error:
            yield str(error)
    sources = (each if isinstance(each, tuple) else (each, None) for each in files)
    for path, several in {path: channel is not None for path, channel in sources}.items():
        try:
            header = nifti.read_header(path, channels=several)
            if several:
                decathlon.check_channels(path, header.shape, task)
        except UserError as error:
            yield str(error)


def check_references(jobs: Iterable[Job]) -> None:
    """Refuses scans that do not lie on the grid of their series of DICOM, by their headers.

    Raises:
        UserError: such a scan, or a series that is no regular stack.
    """
    for job in jobs:
        if job.reference:
            dicom_stack.check(job.reference)
            (path, *_) = _paths(next(iter(job.images.values())))
            header = nifti.read_header(path, channels=True)
            dicom_stack.check_grid(job.reference, header.space.affine, header.shape, str(path))


def _paths(source: Source) -> list[pathlib.Path]:
    if isinstance(source, dicom.Series):
        return [source.place, *(file.path for file in source.files)]
    return [source[0] if isinstance(source, tuple) else source]


def _check_collisions(jobs: Sequence[Job], beside: Sequence[pathlib.Path]) -> None:
    outputs = [*itertools.chain.from_iterable(job.outputs for job in jobs), *beside]
    sources = {
        os.path.realpath(path)
        for job in jobs
        for source in job.images.values()
        for path in _paths(source)
    }
    taken: set[str] = set()
    for path in outputs:
        real = os.path.realpath(path)
        if real in sources:
            raise UserError(f"{path} would be written, but it is the input itself: choose another.")
        if real in taken:
            raise UserError(
                f"{path} would be written twice. Rename the inputs, or predict them one by one."
            )
        taken.add(real)

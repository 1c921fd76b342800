"""File names of scans: which sequence one is, or whether it is a tumour's segmentation.

A name is cut into words, at `_`, `-`, `.` and blanks. What stands before `to`, `in` or `reg`
counts; what stands behind is the grid that the file was brought to. Of names in the form of BIDS
(`sub-01_ses-1_space-MNI152_ce-gadolinium_T1w`) the entities are understood. `docs/data.md` has the
rules for users.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

LABEL: Final = "label"
SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "t1": ("t1", "t1n", "t1w", "t1pre"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1post", "ct1"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f", "fla", "t2flair"),
    # "boost": GlistrBoost, the label of TCGA-GBM and TCGA-LGG.
    LABEL: ("seg", "segm", "segmentation", "segmentations", "label", "mask", "dseg", "boost"),
}
SEQUENCES: Final = {name: key for key, names in SYNONYMS.items() for name in names}
_SCANS: Final = {name: key for name, key in SEQUENCES.items() if key != LABEL}
MASKS: Final = frozenset((*SYNONYMS[LABEL], "roi"))


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# "post" is none of them: it may be a visit after surgery.
_CONTRAST: Final = _set(
    "ce gd gad gado gadolinium dotarem magnevist multihance prohance contrast enhanced +c c+ +gd"
)
# Words that are read as "contrast": gadovist, contrastEnhanced, postGd3D.
_LIKE_CONTRAST: Final = re.compile(
    r"gad[ao](?:lin|vist|bu|ter|di)\w*|contrast\w+|post(?:gd|contrast)\w*"
)
_NO_CONTRAST: Final = _set("pre non no none without native precontrast")
PREPOSITIONS: Final = _set("to in on onto into")
REGISTERED: Final = _set(
    "reg registered coreg coregistered aligned warped rigid affine resampled resliced r2s"
)
# The same image with other intensities.
INTENSITY: Final = _set("bias n4 n4itk bfc corrected biascorrected")
STRIPPED: Final = _set("brain bet hd hdbet ss stripped skullstripped masked unstripped")
BEHIND: Final = REGISTERED | INTENSITY | STRIPPED | _CONTRAST | _NO_CONTRAST | _set("post space")
_TUMOUR: Final = _set("tumor tumour lesion glioma gbm")
_AUTOMATIC: Final = _set("automated approx glistr")
_CORRECTED: Final = _set("manual manually corrected")
_EDITED: Final = _AUTOMATIC | _CORRECTED | _set("final")
_HOLE: Final = _set("healthy unhealthy void voided hole inpaint inpainting")
_ANATOMY: Final = _set(
    "brain bet hdbet skull strip stripped synthstrip robex tissue tissues parenchyma head face wm "
    "gm csf matter ventricle ventricles vessel vessels cerebellum hippocampus bone eyes orbit "
    "foreground background bg fov synthseg aseg aparc aparcaseg parcellation atlas hemisphere"
)
_REGIONS: Final = _set(
    "et tc wt ncr net netc ed edema oedema snfh rc enhancing nonenhancing core necrosis necrotic "
    "cavity resection whole"
)
_OTHER_IMAGES: Final = _set(
    "adc dwi swi asl dti fa md pd dsc dce cbf cbv rcbv mtt ct pet mra tof bold t1map t2map t2star "
    "subtraction"
)
# Images that are computed from a weighted one and may have its sequence in their names.
_COMPUTED: Final = _set("t1map t2map t2star subtraction subtracted part-phase part-real part-imag")
_KNOWN: Final = (
    BEHIND | _TUMOUR | _EDITED | _HOLE | _ANATOMY | _REGIONS | _OTHER_IMAGES | MASKS
) | _SCANS.keys()

_BIDS: Final = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?(?=_|$)", re.IGNORECASE)
_ENTITY: Final = re.compile(r"([A-Za-z]+)-([A-Za-z0-9+]+)")
# Entities that say what the image is.
_TELLING: Final = ("ce", "acq", "desc", "rec", "label", "part")
_SPACE: Final = re.compile(r"(?<=[_.-])space-[A-Za-z0-9]+")
_ALL_SCANS: Final = "|".join(sorted(_SCANS, key=len, reverse=True))
_GLUED: Final = (
    re.compile(rf"({_ALL_SCANS})(to|in|on|2)({_ALL_SCANS})"),
    re.compile(r"(brain|tumou?r|lesion|skull)(mask|seg|segmentation|roi)"),
)

HOLE: Final = "a file of an inpainting set, whose masks are no tumours"
OTHER_IMAGE: Final = "an image of another kind"
OTHER_STRUCTURE: Final = "a mask of another structure than the tumour"
ONE_REGION: Final = "a mask of one region, where a segmentation has all"
EITHER: Final = "either a mask or a sequence"
UNTOLD: Final = (
    "a mask that is not said to be of a tumour (name a tumour's CASE_seg or CASE_tumor_seg)"
)
_NO_SUBJECT: Final = "says that it was brought to {}, but not which sequence it is"


@dataclasses.dataclass(frozen=True)
class Name:
    """What a file's name says.

    Attributes:
        prefix: the name of the case that it holds, empty where it holds none.
        sequence: a modality, `LABEL`, or None.
        secondary: the same image with other intensities, or an uncorrected mask: where
            there is one that is not, that one is taken.
        aside: what else it is, where it is a mask or an image that is not looked for.
        doubt: why its sequence is unknown.
        tumour: whether it says that it is about a tumour.
    """

    prefix: str
    sequence: str | None = None
    secondary: bool = False
    aside: str = ""
    doubt: str = ""
    tumour: bool = False


class Word(NamedTuple):
    """A word of a name, in lower case, and the place where it begins."""

    text: str
    start: int
    in_entity: bool = False
    described: bool = False  # by the entity "desc"


@functools.lru_cache(2**12)
def read(stem: str, folder: str = "") -> Name:
    """Reads a name.

    Args:
        stem: the file's name without .nii or .nii.gz.
        folder: the name of its folder, of which nothing is concluded where the file's repeats it.
    """
    words = cut(stem, folder)
    match = _BIDS.match(stem) and re.search(r"_label-([A-Za-z0-9]+)", stem)
    found = _understand([word.text for word in words], match[1].lower() if match else "")
    described = [word.text for word in words if word.described]
    if found.sequence == LABEL and not found.tumour and not {*described} <= _KNOWN:
        found = Name("", aside=UNTOLD)  # desc-thalamus_mask
    return dataclasses.replace(found, prefix=_prefix(stem, words, found))


def subject(name: str) -> tuple[str, str]:
    """Returns "sub-X" and "ses-Y" of a name in the form of BIDS; both, or the latter, empty."""
    match = _BIDS.match(name)
    return (match[1], match[2] or "") if match else ("", "")


# ------------------------------------------------------------------------------------- words


def cut(stem: str, folder: str) -> list[Word]:
    """Returns the words of a name in lower case, without those that only say which case it is."""
    bids = _BIDS.match(stem)
    start = max(len(folder) if _repeats(stem, folder) else 0, bids.end() if bids else 0)
    stem = _SPACE.sub(lambda match: "_" * len(match[0]), stem)
    words: list[Word] = []
    for part in re.compile(r"[^\s_]+").finditer(stem, start):
        entity = _ENTITY.fullmatch(part[0]) if bids else None
        if entity is None:
            for each in re.finditer(r"[^.\-]+", part[0]):
                words += _split(each[0], part.start() + each.start())
        elif _tells(*entity.groups()):
            # Whatever agent "ce" names. Two words, so that "acq-pre" before it does not negate it.
            key = entity[1].lower()
            values = {"ce": ("ce", "contrast"), "part": (part[0],)}.get(key, (entity[2],))
            found = [word for value in values for word in _split(value, part.start(), True)]
            words += [word._replace(described=key == "desc") for word in found]
    return words


def _repeats(stem: str, folder: str) -> bool:
    """Whether a name begins with its folder's, where that names a case, and nothing of the file."""
    begins = folder and stem.lower().startswith(folder.lower())
    # A folder T1 or anna_brain does say what a mask in it is of.
    return (
        bool(begins) and stem[len(folder) :][:1] in [*"_-. "] and not read(f"{folder}_mask").aside
    )


def _tells(key: str, value: str) -> bool:
    """Whether an entity of BIDS says what an image is."""
    key = key.lower()
    return key in _TELLING and not (key == "ce" and value.lower() in _NO_CONTRAST)


def _split(text: str, start: int, in_entity: bool = False) -> list[Word]:
    """Cuts BrainMask and T1toT1CE into words."""
    if _LIKE_CONTRAST.fullmatch(text.lower()):
        return [Word("contrast", start, in_entity)]
    for pattern in _GLUED:
        if glued := pattern.fullmatch(text.lower()):
            parts = range(1, pattern.groups + 1)
            return [Word(glued[i], start + glued.start(i), in_entity) for i in parts]
    if re.search(r"\d", text) or text.lower() in _KNOWN:
        return [Word(text.lower(), start, in_entity)]
    camels = re.finditer(r".+?(?:(?<=[a-z])(?=[A-Z])|$)", text)
    return [Word(part[0].lower(), start + part.start(), in_entity) for part in camels]


def _prefix(stem: str, words: Sequence[Word], found: Name) -> str:
    """Returns what stands before all words that say what the file is."""
    case = "_".join(part for part in subject(stem) if part)
    if not (case or found.sequence or found.aside or found.doubt):
        return stem[: max(0, len(stem) - len(re.split("[_-]", stem)[-1]) - 1)]
    texts = [word.text for word in words]
    core = texts[: relation(texts)]
    things = [i for i, text in enumerate(core) if text in MASKS | _SCANS.keys()]
    first = things[-1] if things else max(0, len(core) - 1)
    if not things and found.sequence == LABEL:  # anna_tumor_in_t1_seg
        first, core = len(core), texts
    if found.sequence == "t1ce":  # P_Gd_3D_T1
        first = min([first, *(i for i in range(1, first) if core[i] in _CONTRAST)])
    return prefix_before(stem, words, core, first)


def prefix_before(stem: str, words: Sequence[Word], core: Sequence[str], first: int) -> str:
    """Returns the name of the case that stands before what the file is.

    Args:
        stem: the whole name.
        words: of it.
        core: the words up to the grid that the file was brought to.
        first: where the words begin that say what the file is.
    """
    while first and _describes(core, first - 1):
        first -= 1
    if case := "_".join(part for part in subject(stem) if part):
        return "_".join([case, *(word.text for word in words[:first] if not word.in_entity)])
    return stem[: words[first].start if first < len(words) else len(stem)].rstrip("_-. ")


def _describes(words: Sequence[str], i: int) -> bool:
    """Whether a word before that of the sequence is about the image, not of the case's name."""
    word, behind = words[i], {*words[i + 1 :]}
    if word in _NO_CONTRAST | {"post"}:  # anna_post_t2 is a visit
        return {*words[i + 1 : i + 2]} <= _CONTRAST | _NO_CONTRAST
    if MASKS & behind:
        return word in _KNOWN - _OTHER_IMAGES
    return word in _SCANS or word in BEHIND - {"hd", "ss"}


# ----------------------------------------------------------------------------------- meaning


def _understand(words: Sequence[str], structure: str) -> Name:
    """Returns what the words say; `structure` is what a mask of BIDS is labelled as."""
    end = relation(words)
    of_grid = MASKS & {*words[end:]}  # T1_to_SRI_brain_mask
    core = words if of_grid else words[:end]
    tail = _tail(core)
    if not words:  # sub-01_ses-1
        return Name("")
    if MASKS & {*tail} and (of_grid or _ending(core) not in _SCANS):
        return _mask(tail, structure)
    return _scan(core, words[end + 1 :])


def relation(words: Sequence[str]) -> int:
    """Returns the place of the word behind which the grid is named; their number without one."""
    for i in range(1, len(words) - 1):
        known = _ending(words[:i]) in MASKS | _SCANS.keys() | _OTHER_IMAGES
        ahead = words[i + 1] in _SCANS
        if words[i] in PREPOSITIONS and (known or ahead):
            return i
        if words[i] in REGISTERED and known and _SCANS.keys() & {*words[i + 1 :]}:
            return i
        if words[i] == "2" and words[i - 1] in _SCANS and ahead:
            return i
    return len(words)


def _ending(words: Sequence[str]) -> str:
    """Returns the last word that is not about how an image was processed."""
    return next((word for word in reversed(words) if word not in BEHIND), "")


def _tail(words: Sequence[str]) -> Sequence[str]:
    """Returns the last words up to a number, which belongs to the name of a case."""
    first = len(words)
    while first and (words[first - 1] in _KNOWN or re.fullmatch(r"\D+|v\d+", words[first - 1])):
        first -= 1
    return words[first:]


def _mask(words: Sequence[str], structure: str) -> Name:
    held = {*words}
    tumour = held & _TUMOUR or structure in _TUMOUR
    if held & _HOLE:
        return Name("", aside=HOLE)
    if held & _REGIONS:
        return Name("", aside=ONE_REGION)
    if not tumour and (held & _ANATOMY or structure):
        return Name("", aside=OTHER_STRUCTURE)
    if not tumour and "mask" in held and held & _SCANS.keys():
        return Name("", aside="a mask of either the brain or the tumour")
    about = _TUMOUR | _EDITED
    last = next((word for word in reversed(words) if word not in about), "")
    if last not in MASKS or (last == "roi" and not tumour):
        return Name("")
    automatic = bool(held & _AUTOMATIC) and not held & _CORRECTED
    return Name("", LABEL, automatic, tumour=bool(tumour))


def _scan(words: Sequence[str], target: Sequence[str]) -> Name:
    """Reads the name of an image; `target` is the grid that it was brought to."""
    end = len(words)
    while end and words[end - 1] in BEHIND:
        end -= 1
    first = end = max(end, 1)
    while first and words[first - 1] in _KNOWN:
        first -= 1
    word = words[end - 1] if words else ""
    if first < end - 1 and word in _HOLE and words[end - 2] in _SCANS:
        return Name("", aside=HOLE)
    if word in _OTHER_IMAGES and (target or (end > 1 and len(word) > 2)):  # "md" may be initials
        return Name("", aside=OTHER_IMAGE)
    if word not in _SCANS:
        return Name("", doubt=_NO_SUBJECT.format(target[0]) if target else "")
    found = _sequence(word, words[: end - 1], words[first : end - 1], words[end:])
    if found.sequence == "t1" and _with_contrast(target) and not _SCANS.keys() & {*target}:
        return Name("", doubt="names contrast agent behind the grid that it was brought to")
    return dataclasses.replace(found, secondary=found.secondary and not target)


def _sequence(word: str, before: Sequence[str], lead: Sequence[str], behind: Sequence[str]) -> Name:
    """Settles the sequence that `word` names by the words before it and behind it.

    Args:
        word: a name of `SYNONYMS`.
        before: all words before it.
        lead: those of them that directly lead to it and are known.
        behind: how the image was processed.
    """
    sequence = _SCANS[word]
    # SPM writes rT1 for a resliced T1.
    bare = [each if each in _SCANS else re.sub("^[rw]{1,2}", "", each) for each in before]
    others = {_SCANS[each] for each in bare if each in _SCANS} - {sequence}
    if sequence == "flair" and [each for each in lead if each != "space"][-1:] in (["t2"], ["t2w"]):
        others -= {"t2"}  # T2_FLAIR
    own = _behind_case(before)
    contrast = _with_contrast(own) or _with_contrast(behind)
    if MASKS & {*lead}:
        return Name("", aside=EITHER)
    if computed := sorted(_COMPUTED & {*own}):
        return Name("", doubt=f"names {computed[0]} and {sequence}")
    if others:
        return Name("", doubt=f"names {' and '.join(sorted({sequence} | others))}")
    if sequence == "t1" and contrast and any(each.isdigit() for each in _from_contrast(own)):
        return Name("", doubt="names contrast agent, but before a number, as of a case")
    if sequence == "t1" and "post" in own and not contrast:
        return Name("", doubt='names a "post" T1: after contrast agent, or after surgery')
    if contrast and sequence in ("t2", "flair"):
        return Name("", aside="an image with contrast agent")
    if sequence == "t1" and (contrast or "post" in behind):
        sequence = "t1ce"
    return Name("", sequence, is_secondary([*lead, *behind]))


def is_secondary(words: Sequence[str]) -> bool:
    """Whether words about an image say that its intensities alone were changed."""
    processed = {*words} & (REGISTERED | INTENSITY | STRIPPED)
    return bool(processed) and processed <= INTENSITY


def _behind_case(words: Sequence[str]) -> Sequence[str]:
    """Returns the words behind GD_001, where contrast agent would be the name of a case."""
    return words[2:] if words[1:2] and words[1].isdigit() else words


def _from_contrast(words: Sequence[str]) -> Sequence[str]:
    return words[next((i for i, word in enumerate(words) if word in _CONTRAST), len(words)) :]


def _with_contrast(words: Sequence[str]) -> bool:
    pairs = zip(("", *words), words, strict=False)
    return any(word in _CONTRAST and last not in _NO_CONTRAST for last, word in pairs)

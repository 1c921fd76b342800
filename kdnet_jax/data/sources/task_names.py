"""File names of a task: which of its channels a file is, or whether it is the label.

A channel is recognised by its name or an alias as the last words of a name, in any spelling with or
without separators; what is known to be said of any image (registered, corrected, the grid that it
was brought to) may stand around them. Sequences of brain MRI and masks are read by `names.py`.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Final

from kdnet_jax import task as task_lib
from kdnet_jax.data.sources import labels, names

_SEPARATORS: Final = re.compile(r"[\s_.\-]+")
# What `names.py` says of masks that are left aside, for tasks that segment no tumour.
ASIDE: Final = {
    names.OTHER_STRUCTURE: "a mask of another structure than the task's",
    names.UNTOLD: "a mask that is not said to be of the task's regions (name it CASE_seg)",
}


@dataclasses.dataclass(frozen=True)
class _Vocabulary:
    """How a task's channels and regions are spelled.

    Attributes:
        channels: spelling, without separators -> channel.
        sequences: sequence of `names.SYNONYMS` -> the one channel that is it.
        regions: words of the names of the task's regions and classes, and its noun.
        whole: whether a mask of one region is all of the task.
    """

    channels: Mapping[str, str]
    sequences: Mapping[str, str]
    regions: frozenset[str]
    whole: bool


@dataclasses.dataclass(frozen=True)
class _Match:
    channel: str
    spelling: str
    start: int
    stop: int


@functools.lru_cache
def _vocabulary(task: task_lib.Task) -> _Vocabulary:
    channels = {
        _joined(text): channel.name
        for channel in task.channels
        for text in (*channel.aliases, channel.name)
    }
    holders: dict[str, set[str]] = {}
    for spelling, channel in channels.items():
        if spelling in names.SEQUENCES:
            holders.setdefault(names.SEQUENCES[spelling], set()).add(channel)
    sequences = {name: held.pop() for name, held in holders.items() if len(held) == 1}
    texts = (task.noun, *task.region_names, *task.classes[1:])
    regions = {word for text in texts for word in _SEPARATORS.split(text.lower()) if len(word) > 1}
    return _Vocabulary(channels, sequences, frozenset(regions), len(task.regions) == 1)


def _joined(text: str) -> str:
    return _SEPARATORS.sub("", text.lower())


def read(stem: str, folder: str, task: task_lib.Task) -> names.Name:
    """Reads a name; its `sequence` is a channel of the task, `names.LABEL`, or None.

    Args:
        stem: the file's name without its ending.
        folder: see `names.read`.
        task: what is segmented.
    """
    found = names.read(stem, folder)
    if labels.is_brats(task):
        return found
    vocabulary = _vocabulary(task)
    words = names.cut(stem, folder)
    texts = [word.text for word in words]
    if found.sequence == names.LABEL or found.aside in (names.ONE_REGION, names.OTHER_STRUCTURE):
        return _label(found, texts, vocabulary)
    match, other = _match(texts, vocabulary)
    sequence = names.SEQUENCES.get(match.spelling) if match else None
    # A name of several words, such as "t1 post", is the task's own; of one, "t1" is the native T1.
    one_word = match is not None and match.stop - match.start == 1
    if sequence and one_word and found.sequence != sequence:
        match = None
    if match is None or vocabulary.sequences.get(found.sequence or "") == match.channel:
        channel = vocabulary.sequences.get(found.sequence or "")
        return dataclasses.replace(found, sequence=channel)
    return _channel(stem, words, match, other)


def _label(found: names.Name, texts: Sequence[str], vocabulary: _Vocabulary) -> names.Name:
    """Takes a mask that names what the task segments, or that names nothing."""
    about = bool(vocabulary.regions & {*texts})
    if found.sequence != names.LABEL and not (about and vocabulary.whole):
        return found
    parts = re.split(r"([_.\- ]+)", found.prefix)
    while about and parts and parts[-1].lower() in vocabulary.regions:  # anna_gland_seg
        parts = parts[:-2]
    tumour = found.tumour or about
    return names.Name("".join(parts), names.LABEL, found.secondary, tumour=tumour)


def _match(texts: Sequence[str], vocabulary: _Vocabulary) -> tuple[_Match | None, str]:
    """Returns the channel that a name ends in, and another one that it names too."""
    matches = _matches(texts, vocabulary)
    end = _end(texts, matches)
    numbered = [i for i, text in enumerate(texts[:end]) if text.isdigit()]
    inside = [each for each in matches if each.stop <= end]
    last = next((each for each in inside if {*texts[each.stop : end]} <= names.BEHIND), None)
    if last is None:
        return None, ""
    # Before a number stands the name of a case.
    first = max((i for i in numbered if i < last.start), default=-1)
    others = [
        each.channel
        for each in inside
        if first < each.start and each.stop <= last.start and each.channel != last.channel
    ]
    return last, next(iter(others), "")


def _matches(texts: Sequence[str], vocabulary: _Vocabulary) -> list[_Match]:
    """Returns the channels that the words name, without those within a longer one."""
    found = [
        _Match(vocabulary.channels[spelling], spelling, start, stop)
        for start in range(len(texts))
        for stop in range(start + 1, len(texts) + 1)
        if (spelling := "".join(texts[start:stop])) in vocabulary.channels
    ]
    return [
        each
        for each in found
        if not any(
            other != each and other.start <= each.start and each.stop <= other.stop
            for other in found
        )
    ]


def _end(texts: Sequence[str], matches: Sequence[_Match]) -> int:
    """Returns the place of the word behind which the grid is named; their number without one."""

    def within(i: int) -> bool:
        return any(each.start <= i < each.stop for each in matches)

    ends = [names.relation(texts)]
    for i, text in enumerate(texts):
        known = any({*texts[each.stop : i]} <= names.BEHIND for each in matches if each.stop <= i)
        ahead = any(each.start == i + 1 for each in matches)
        leads = text in names.PREPOSITIONS or (text in names.REGISTERED and ahead)
        if leads and known and not within(i) and i + 1 < len(texts):
            ends.append(i)
    return min(end for end in ends if end == len(texts) or not within(end))


def _channel(stem: str, words: Sequence[names.Word], match: _Match, other: str) -> names.Name:
    texts = [word.text for word in words]
    lead = texts[: match.start]
    if names.MASKS & {*lead}:
        return names.Name("", aside=names.EITHER)
    prefix = names.prefix_before(stem, words, texts[: match.stop], match.start)
    if other:
        both = " and ".join(sorted({match.channel, other}))
        return names.Name(prefix, doubt=f"names {both}")
    around = [text for text in (*lead[-3:], *texts[match.stop :]) if text in names.BEHIND]
    return names.Name(prefix, match.channel, names.is_secondary(around))

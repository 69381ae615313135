"""Names the text of each medium, so that a text that a user wrote stays with its medium.

Names depend on the other media: `a`; `a.mp4` and `a.mkv`; `a.mp4-2`. A hidden file of the folder of
outputs remembers the name of each text, by the medium's path and by its content. A medium keeps its
name when others are added, removed or come in another order.
"""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from pathlib import PurePosixPath
from typing import NamedTuple

from artifacts.keys import digest_of
from artifacts.names import file_stems, fitting
from flows.job.prepare import Job
from flows.media.generated_files import ANY, GeneratedFiles

STEM, NUMBERED, TAKEN = "stem", "numbered", "taken"
"""Kinds of records: that a medium has a stem, that a number distinguishes some of its name, and
that a stem is taken, by a medium of this name without suffix."""
MORE_NUMBERS = 64
"""Numbers that are tried beyond those that the media of this run need."""


class Entry(NamedTuple):
    """A medium under one prompt."""

    path: str
    """Path of its text, as far as it depends on the medium alone, with the medium's suffix."""
    place: str
    digest: str
    prompt: str
    bare: str
    """Name of the medium without suffix and prompt."""

    def identities(self, *, alone: bool) -> tuple[str, ...]:
        """Return what the medium is recognized by, the surest first. `alone`: it has no other
        prompt."""
        path, place, digest, prompt, _ = self
        exact = (digest_of([path, place, prompt]), digest_of([path, digest, prompt]))
        return (*exact, digest_of([path, place]), digest_of([path, digest])) if alone else exact


def text_stems(job: Job, beside: bool) -> list[str]:
    """Return the path without suffix of each file's text, absolute."""
    root = "" if beside else f"{job.out}/"
    entries = [
        Entry(
            _named(str(file.path) if beside else file.media_path, file.name),
            file.place,
            medium.digest,
            medium.prompt,
            _bare(file.media_path),
        )
        for file, medium in zip(job.files, job.contents, strict=True)
    ]
    # Beside it, a file that two sources name has one text, but one text per prompt.
    each = list(dict.fromkeys((e.path, e.prompt) for e in entries)) if beside else []
    first = {(e.path, e.prompt): e for e in reversed(entries)}
    distinct = [first[one] for one in each] or entries
    stems = _remembered(distinct, GeneratedFiles(None, out=job.out))
    if beside:
        of = dict(zip(each, stems, strict=True))
        stems = [of[e.path, e.prompt] for e in entries]
    return [f"{root}{stem}" for stem in stems]


def _remembered(entries: Sequence[Entry], memory: GeneratedFiles) -> list[str]:
    """Return the stem of each medium: the one that it had, else one that is free."""
    defaults = file_stems([each.path for each in entries])
    prompts = Counter((each.path, each.place) for each in entries)
    stems = _known(entries, defaults, memory) if memory else {}
    taken = {*stems.values()}
    for at, (entry, default) in enumerate(zip(entries, defaults, strict=True)):
        name = digest_of(entry.bare)
        if at not in stems:
            stems[at] = _free(default, name, taken, memory)
            taken.add(stems[at])
        identities = entry.identities(alone=prompts[entry.path, entry.place] == 1)
        if not memory.has(STEM, stems[at], identities[:1]):
            memory.add(STEM, stems[at], identities)
            memory.add(TAKEN, stems[at], (*ANY, name))
            if stems[at] not in _plain(entry):
                memory.add(NUMBERED, digest_of(entry.path))
    return [stems[at] for at in range(len(entries))]


def _known(
    entries: Sequence[Entry], defaults: Sequence[str], memory: GeneratedFiles
) -> dict[int, str]:
    """Return the number of each medium that had a stem → that stem."""
    stems: dict[int, str] = {}
    taken: set[str] = set()
    for at, (entry, default) in enumerate(zip(entries, defaults, strict=True)):
        known = (
            stem
            for identity in entry.identities(alone=True)
            for stem in _candidates(entry, default, len(entries), memory)
            if stem not in taken and memory.has(STEM, stem, (identity,))
        )
        if (stem := next(known, None)) is not None:
            stems[at] = stem
            taken.add(stem)
    return stems


def _free(default: str, name: str, taken: Set[str], memory: GeneratedFiles) -> str:
    """Return a stem that no medium has. The text of a prompt, `a.short`, is not that of a medium
    `a.short`. `name`: digest of the medium's name without suffix."""
    number, stem = 1, default
    while stem in taken or (memory.has(TAKEN, stem) and not memory.has(TAKEN, stem, (name,))):
        number += 1
        stem = fitting(f"{default}-{number}")
    return stem


def _plain(entry: Entry) -> tuple[str, str]:
    """Return the stems without a number."""
    return fitting(_bare(entry.path)), fitting(entry.path)


def _candidates(entry: Entry, default: str, count: int, memory: GeneratedFiles) -> Iterator[str]:
    """Yield the stems that a medium may have had among `count` media, the likeliest first."""
    yield default
    plain = _plain(entry)
    yield from plain
    if memory.has(NUMBERED, digest_of(entry.path)):
        numbers = range(2, min(count, MORE_NUMBERS) + MORE_NUMBERS)
        yield from (fitting(f"{stem}-{number}") for stem in plain for number in numbers)


def _bare(path: str) -> str:
    return path.removesuffix(PurePosixPath(path).suffix)


def _named(path: str, name: str) -> str:
    """Return the path of a medium with a prompt name before its suffix: `a.short.mp4`."""
    return f"{_bare(path)}.{name}{PurePosixPath(path).suffix}" if name else path

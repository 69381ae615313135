"""Names the text of each medium, so that a text that a user wrote stays with its medium.

Names depend on the other media: `a`; `a.mp4` and `a.mkv`; `a.mp4-2`. A hidden file of the folder of
outputs remembers the name of each text, by the medium's path and by its content. A medium keeps its
name when others are added, removed or come in another order. Names that the disk does not
distinguish count as one.

Next to media the name also tells trainers which medium a text is about. So a medium takes the plain
name back once no other medium of its folder needs that, unless a user wrote or edited the text that
it has.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from artifacts.disk_names import rules_in
from artifacts.keys import digest_of
from artifacts.names import Naming, file_stems
from artifacts.subtitles import WRITERS
from flows.job.prepare import Job
from flows.media.generated_files import ANY, GeneratedFiles, about, digest_at
from flows.media.media_files import Selection
from flows.options.text import OutputOptions

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
    is_sole: bool
    """Whether a trainer takes `bare` for this medium alone, in the folder where its text lies."""

    def identities(self, naming: Naming, *, alone: bool) -> tuple[str, ...]:
        """Return what the medium is recognized by, the surest first. `alone`: it has no other
        prompt."""
        place, digest, prompt = self.place, self.digest, self.prompt
        path = naming.folded(self.path)
        exact = (digest_of([path, place, prompt]), digest_of([path, digest, prompt]))
        return (*exact, digest_of([path, place]), digest_of([path, digest])) if alone else exact


def naming_of(job: Job, beside: bool) -> Naming:
    """Return how texts are named. Only a disk that gets some is probed, since that writes there."""
    out, probe = job.out, not beside or OutputOptions.of(job.config).beside
    rules_of = cache(lambda folder: rules_in(folder if beside else out, probe=probe))
    return Naming(rules_of, beside)


def text_stems(job: Job, beside: bool, sole: "SoleMedia | None" = None) -> list[str]:
    """Return the path without suffix of each file's text, absolute. `sole`: what is known of the
    folders."""
    root, written = "" if beside else f"{job.out}/", GeneratedFiles(job.store, out=job.out)
    sole = sole or SoleMedia(naming_of(job, beside))
    entries = [
        Entry(
            _named(str(file.path) if beside else file.media_path, file.name),
            file.place,
            medium.digest,
            medium.prompt,
            _bare(file.media_path),
            beside and not file.name and sole.has(str(file.path)),
        )
        for file, medium in ((each.file, each.medium) for each in job.files)
    ]
    # Beside it, a file that two sources name has one text, but one text per prompt.
    each = list(dict.fromkeys((e.path, e.prompt) for e in entries)) if beside else []
    first = {(e.path, e.prompt): e for e in reversed(entries)}
    distinct = [first[one] for one in each] or entries
    names = _Names(GeneratedFiles(None, out=job.out), written, sole.naming)
    stems = names.of(distinct)
    if beside:
        of = dict(zip(each, stems, strict=True))
        stems = [of[e.path, e.prompt] for e in entries]
    return [f"{root}{stem}" for stem in stems]


class _Names:
    """The names of texts in one folder of outputs, or next to media."""

    def __init__(self, memory: GeneratedFiles, written: GeneratedFiles, naming: Naming) -> None:
        self._memory = memory
        self._written = written
        self._naming = naming

    def of(self, entries: Sequence[Entry]) -> list[str]:
        """Return the stem of each medium: the one that it had, else one that is free."""
        memory, folded = self._memory, self._naming.folded
        defaults = file_stems([each.path for each in entries], self._naming)
        prompts = Counter((each.path, each.place) for each in entries)
        stems = self._known(entries, defaults) if memory else {}
        taken = {*map(folded, stems.values())}
        for at, (entry, default) in enumerate(zip(entries, defaults, strict=True)):
            name = digest_of(entry.bare)
            if at not in stems:
                stems[at] = self._free(default, name, taken, entry.is_sole)
                taken.add(folded(stems[at]))
            alone = prompts[entry.path, entry.place] == 1
            identities = entry.identities(self._naming, alone=alone)
            if not memory.has(STEM, stem := folded(stems[at]), identities[:1]):
                memory.add(STEM, stem, identities)
                memory.add(TAKEN, stem, (*ANY, name))
                if stems[at] not in self._plain(entry):
                    memory.add(NUMBERED, digest_of(folded(entry.path)))
        return [stems[at] for at in range(len(entries))]

    def _known(self, entries: Sequence[Entry], defaults: Sequence[str]) -> dict[int, str]:
        """Return the number of each medium that keeps the stem that it had → that stem."""
        folded, stems, taken = self._naming.folded, dict[int, str](), set[str]()
        for at, (entry, default) in enumerate(zip(entries, defaults, strict=True)):
            known = (
                stem
                for identity in entry.identities(self._naming, alone=True)
                for stem in self._candidates(entry, default, len(entries))
                if (key := folded(stem)) not in taken and self._memory.has(STEM, key, (identity,))
            )
            stem = next(known, None)
            is_kept = stem == default or not entry.is_sole
            if stem is not None and (is_kept or self._has_user_text(entry, stem)):
                stems[at] = stem
                taken.add(folded(stem))
        return stems

    def _has_user_text(self, entry: Entry, stem: str) -> bool:
        """Return whether a user wrote or edited a text of a medium at a stem."""
        paths = {form: Path(f"{stem}.{form}") for form in WRITERS}
        return any(
            os.path.lexists(path)
            and not self._written.has_of_any_kind(
                form, digest_at(path), about(entry.digest, path, entry.place)
            )
            for form, path in paths.items()
        )

    def _free(self, default: str, name: str, taken: Set[str], is_sole: bool) -> str:
        """Return a stem that no medium has. The text of a prompt, `a.short`, is not that of a
        medium `a.short`, which gets it back where it `is_sole`. `name`: digest of the medium's name
        without suffix."""
        number, stem, has = 1, default, self._memory.has
        while (key := self._naming.folded(stem)) in taken or (
            not is_sole and has(TAKEN, key) and not has(TAKEN, key, (name,))
        ):
            number += 1
            stem = self._naming.fitting(f"{default}-{number}")
        return stem

    def _plain(self, entry: Entry) -> tuple[str, str]:
        """Return the stems without a number."""
        return self._naming.fitting(_bare(entry.path)), self._naming.fitting(entry.path)

    def _candidates(self, entry: Entry, default: str, count: int) -> Iterator[str]:
        """Yield the stems that a medium may have had among `count` media, the likeliest first."""
        yield default
        plain = self._plain(entry)
        yield from plain
        if self._memory.has(NUMBERED, digest_of(self._naming.folded(entry.path))):
            numbers = range(2, min(count, MORE_NUMBERS) + MORE_NUMBERS)
            fitting = self._naming.fitting
            yield from (fitting(f"{stem}-{number}") for stem in plain for number in numbers)


class SoleMedia:
    """Media whose name without suffix is that of no other medium in their folder."""

    def __init__(self, naming: Naming) -> None:
        self.naming = naming
        self._stems = Counter[str]()
        self._listed: set[str] = set()
        self._media = Selection(recursive=False, extensions=())

    def has(self, path: str) -> bool:
        """Return whether a medium on this disk is one. Lists its folder once."""
        folder, _, _ = path.rpartition("/")
        if folder not in self._listed:
            self._listed.add(folder)
            with contextlib.suppress(OSError):
                names = filter(self._media.takes, os.listdir(folder))
                self._stems.update(self._stem(f"{folder}/{name}") for name in names)
        return self._stems[self._stem(path)] == 1

    def _stem(self, path: str) -> str:
        return self.naming.folded(_bare(path))


def _bare(path: str) -> str:
    return path.removesuffix(PurePosixPath(path).suffix)


def _named(path: str, name: str) -> str:
    """Return the path of a medium with a prompt name before its suffix: `a.short.mp4`."""
    return f"{_bare(path)}.{name}{PurePosixPath(path).suffix}" if name else path

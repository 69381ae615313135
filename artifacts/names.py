"""Output file names that are unique and safe on any file system."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

from artifacts.disk_names import ORDINARY, NameRules, rules_in
from artifacts.keys import digest_of
from artifacts.subtitles import WRITERS

SUFFIXES = tuple(f".{form}" for form in WRITERS)
LONGEST_SUFFIX = max(map(len, SUFFIXES))
DIGITS = 8
"""Hex digits that distinguish shortened names."""


@dataclass(frozen=True, slots=True)
class Naming:
    """Chooses names that the disks of some folders take."""

    rules_of: Callable[[str], NameRules] = lambda folder: ORDINARY
    """What is known of the disk of a folder."""
    beside: bool = False
    """Whether the folders are those of media, and so keep their names."""

    def fitting(self, path: str) -> str:
        """Return a path whose parts fit the disk, the last one with a suffix."""
        folder, slash, name = path.rpartition("/")
        rules = self.rules_of(folder)
        if not self.beside:
            folder = "/".join(_fitting(f, rules, rules.longest) for f in folder.split("/"))
        return folder + slash + _fitting(name, rules, rules.longest - LONGEST_SUFFIX, last=True)

    def folded(self, path: str) -> str:
        """Return a text that is the same for all paths that are one on the disk."""
        folder, slash, name = path.rpartition("/")
        if not (rules := self.rules_of(folder)).folds:
            return path
        return (folder if self.beside else rules.folded(folder)) + slash + rules.folded(name)


def file_stems(media_paths: Sequence[str], naming: Naming | None = None) -> list[str]:
    """Return a unique name without suffix for each medium: `a`; `a.mp4` and `a.mkv`; `a.mp4-2`. No
    output file gets the name of a folder that another one needs."""
    naming = naming or Naming()
    bare = [naming.fitting(p.removesuffix(PurePosixPath(p).suffix)) for p in media_paths]
    shared = Counter(map(naming.folded, bare))
    parents = {str(PurePosixPath(naming.fitting(path)).parent) for path in media_paths}
    folders = {naming.folded(folder) for folder in parents}
    taken = {f.removesuffix(s) for f in folders for s in SUFFIXES if f.endswith(s)}
    numbers = Counter(taken)
    stems: list[str] = []
    for path, stem in zip(media_paths, bare, strict=True):
        is_alone = shared[naming.folded(stem)] == 1
        preferred = name = stem if is_alone else naming.fitting(path)
        start = naming.folded(preferred)
        while (key := naming.folded(name)) in taken:
            numbers[start] += 1
            name = naming.fitting(f"{preferred}-{numbers[start]}")
        taken.add(key)
        numbers[key] += 1
        stems.append(name)
    return stems


def numbered(stem: str, suffix: str) -> Iterator[str]:
    """Yield a name, then the same with `-2`, `-3` and so on before the suffix."""
    yield stem + suffix
    yield from (f"{stem}-{number}{suffix}" for number in count(2))


def file_name(name: str, folder: Path) -> str:
    """Return a name with the same suffix that the disk of a folder takes."""
    rules = rules_in(folder)
    stem, suffix = os.path.splitext(name)
    room = rules.longest - len(os.fsencode(suffix))
    return _fitting(stem, rules, room, last=bool(suffix)) + rules.taken(suffix)


def _fitting(name: str, rules: NameRules, longest: int, *, last: bool = False) -> str:
    """Return a part of a path that the disk takes, of at most so many bytes. `last`: a suffix
    follows, so that it does not end here."""
    raw = os.fsencode(fitted := rules.taken(name, last=last))
    if len(raw) <= longest:
        return fitted
    mark = "~" + digest_of(name)[:DIGITS]
    return raw[: longest - len(mark)].decode("utf-8", errors="ignore") + mark

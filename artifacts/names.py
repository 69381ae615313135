"""Output file names that are unique and safe on any file system."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from artifacts.keys import digest_of
from artifacts.subtitles import WRITERS

LONGEST_NAME = 255
"""Largest size in bytes of a file name, on nearly every file system."""
SUFFIXES = tuple(f".{form}" for form in WRITERS)
LONGEST_STEM = LONGEST_NAME - max(map(len, SUFFIXES))
DIGITS = 8
"""Hex digits that distinguish shortened names."""


def file_stems(media_paths: Sequence[str]) -> list[str]:
    """Return a unique name without suffix for each medium: `a`; `a.mp4` and `a.mkv`; `a.mp4-2`. No
    output file gets the name of a folder that another one needs."""
    bare = [path.removesuffix(PurePosixPath(path).suffix) for path in media_paths]
    shared = Counter(bare)
    folders = {str(PurePosixPath(fitting(path)).parent) for path in media_paths}
    taken = {f.removesuffix(s) for f in folders for s in SUFFIXES if f.endswith(s)}
    numbers = Counter(taken)
    stems: list[str] = []
    for path, stem in zip(media_paths, bare, strict=True):
        preferred = name = fitting(stem if shared[stem] == 1 else path)
        while name in taken:
            numbers[preferred] += 1
            name = fitting(f"{preferred}-{numbers[preferred]}")
        taken.add(name)
        numbers[name] += 1
        stems.append(name)
    return stems


def fitting(path: str) -> str:
    """Return a path whose parts fit the limit on file names, the last one with a suffix."""
    *folders, name = path.split("/")
    return "/".join([*(_short(f, LONGEST_NAME) for f in folders), _short(name, LONGEST_STEM)])


def _short(name: str, longest: int) -> str:
    raw = os.fsencode(name)
    if len(raw) <= longest:
        return name
    mark = "~" + digest_of(name)[:DIGITS]
    return raw[: longest - len(mark)].decode("utf-8", errors="ignore") + mark

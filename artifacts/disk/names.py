"""Makes output file names that are unique and safe on any file system.

Disks differ: NTFS, exFAT and network shares ignore case, macOS also ignores how a letter is
composed. So names count as equal by one rule on every disk, which ignores more than any disk does.
A letter is replaced only where the disk refuses it, as many refuse `:` or `?`.
"""

import contextlib
import errno
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import count
from pathlib import Path, PurePosixPath
from unicodedata import category, normalize

from artifacts.digests import digest_of
from artifacts.disk.files import HALF, own_folder

LONGEST_NAME, SHORT_NAME = 255, 143
"""Largest size of a file name in bytes, also on a disk that encrypts names. Disks that count
letters or UTF-16 units take as many."""
TRIAL = f"{HALF}names-"
"""Prefix of the folder in which a name is tried; the process id follows."""
REFUSING = (errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ)
ODD = (
    *((letter, re.escape(letter)) for letter in '<>:"\\|?*\x7f'),
    ("\x01", "[\x01-\x1f]"),
    ("\udcff", "[\ud800-\udfff]"),
    ("\u00e9", "[\u0080-\u00ff]"),
    ("\u8a9e", "[\u0100-\ud7ff\ue000-\uffff]"),
    ("\U0001f600", "[\U00010000-\U0010ffff]"),
    ("aux", r"(?i)\A(?=(con|prn|aux|nul|(com|lpt)[0-9¹²³]) *(\.|$))"),
)
"""Name that a disk may refuse, and a pattern of all that it then refuses: letters, and the names of
devices on Windows with any suffix. Lone surrogates stand for bytes that are no UTF-8."""
END = ("a.", "[. ]+$")
"""The same of the end of a name."""
PLAIN = re.compile(r"(?!aux|con|prn|nul|com|lpt)[\w !#-)+-.=@\[\]{}~]*\w", re.ASCII | re.IGNORECASE)
"""Names in which none of these patterns is found. To look for each takes 50 times as long."""


def folded(path: str) -> str:
    """Return a text that is the same for all paths that a disk may take for one. Case, the form of
    a letter, joiners, the selectors of emoji, and dots and spaces at an end do not count. A number
    too many in a name does no harm."""
    if not path.isascii():
        path = normalize("NFKC", path).upper().casefold().replace("i\u0307", "i")
        shown = (c for c in path if category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
        path = normalize("NFKC", "".join(shown))
    is_plain = path[-1:] not in (".", " ") and "./" not in path and " /" not in path
    return path.lower() if is_plain else re.sub(r"(?<=[^/])[. ]+(?=/|$)", "", path.lower())


def one_name(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a file, folded."""
    return folded(os.path.abspath(path))


def path_on_disk(path: str) -> str:
    """Return the existing path that differs from this one only in how its letters are composed, as
    names of a Mac do (NFD); empty if there is none, more than one, or this one (a broken link)."""
    existing = ""
    for part in Path(path).parts:
        place = os.path.join(existing, part)
        if not os.path.lexists(place):
            name, alike = normalize("NFC", part), list[str]()
            with contextlib.suppress(OSError, ValueError):
                alike = [n for n in os.listdir(existing or ".") if normalize("NFC", n) == name]
            if len(alike) != 1:
                return ""
            place = os.path.join(existing, alike[0])
        existing = place
    return "" if existing == path else existing


TEXT_FORMATS = ("txt", "vtt", "srt")
"""Formats with one file per medium, which `--beside` puts next to it."""
SUFFIXES = tuple(f".{form}" for form in TEXT_FORMATS)
"""Suffixes of these files."""
LONGEST_SUFFIX = max(map(len, SUFFIXES))
DIGITS = 8
"""Hex digits that distinguish shortened names."""


class Naming:
    """Chooses names in a folder of outputs, or beside media, whose names their disk has."""

    def __init__(self, out: str | os.PathLike[str] = "") -> None:
        """Take the folder of outputs; empty: beside media."""
        self._out = os.fspath(out)
        self._takes = cache(partial(_takes, Path(out)))
        self._ignores = cache(_ignores_spelling)

    def fitting(self, path: str) -> str:
        """Return a path whose parts the disk takes, the last one with a suffix."""
        folder, slash, name = path.rpartition("/")
        if self._out:
            folder = "/".join(map(self.part, folder.split("/")))
        return folder + slash + self.part(name, LONGEST_SUFFIX)

    def part(self, name: str, suffix: int = 0) -> str:
        """Return a part of a path, with `_` for what the disk refuses, and so short that a suffix
        of this size in bytes may follow."""
        fitted, longest = name, LONGEST_NAME
        if self._out and not PLAIN.fullmatch(name):
            for sample, pattern in (*ODD, *(() if suffix else [END])):
                if re.search(pattern, fitted) and not self._takes(sample):
                    fitted = re.sub(pattern, "_", fitted)
        raw = os.fsencode(fitted)
        if self._out and len(raw) > SHORT_NAME - suffix and not self._takes("x" * longest):
            longest = SHORT_NAME
        if len(raw) <= longest - suffix:
            return fitted
        mark = f"~{digest_of(name)[:DIGITS]}"
        return raw[: longest - suffix - len(mark)].decode("utf-8", errors="ignore") + mark

    def folded(self, path: str) -> str:
        """Return a text that is the same for all paths that count as one. Beside media these are
        those that the disk takes for one."""
        folder, slash, name = path.rpartition("/")
        if self._out:
            return folded(path)
        return f"{folder}{slash}{folded(name)}" if self._ignores(folder) else path


def _takes(folder: Path, name: str) -> bool:
    """Return whether the disk of a folder takes a file of this name, by making one in a folder of
    its own there."""
    try:
        with own_folder(folder, TRIAL) as place:
            os.close(os.open(os.fsencode(place / name), os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        return error.errno not in REFUSING
    return True


def _ignores_spelling(folder: str) -> bool:
    """Return whether the disk finds files of a folder by other spellings of their names."""

    def with_other_case(name: str) -> str:
        stem, suffix = os.path.splitext(name)
        return stem + suffix.swapcase()

    spellings = (with_other_case, partial(normalize, "NFC"), partial(normalize, "NFD"))
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
        for spell in spellings:
            name = next((name for name in names if spell(name) != name), "")
            with contextlib.suppress(OSError):
                places = (f"{folder}/{spelling}" for spelling in (name, spell(name)))
                if name and os.path.samestat(*map(os.lstat, places)):
                    return True
    return False


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
    naming, (stem, suffix) = Naming(folder), os.path.splitext(name)
    return naming.part(stem, len(os.fsencode(suffix))) + naming.part(suffix)

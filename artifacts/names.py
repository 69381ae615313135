"""Makes output file names that are unique and safe on any file system.

The module probes a disk for the file names that it accepts and for those that it treats as one.
Disks differ: NTFS, exFAT and network shares ignore case, macOS also ignores how a letter is
composed, and many refuse `:` or `?`. What an ordinary Linux disk does changes no name.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from unicodedata import category, normalize

from artifacts.captions import WRITERS
from artifacts.files import HALF, own_folder
from artifacts.keys import digest_of

LONGEST_NAME = 255
"""Largest size of a file name in bytes. Disks that count letters or UTF-16 units take as many."""
PROBE = f"{HALF}names-"
"""Prefix of the folder of a probe; the process id follows."""
KEPT_SECONDS = 60.0
"""Time after which a disk is probed again: another may be in its place."""
GET_FLAGS, IGNORES_CASE = 0x80086601, 0x40000000
"""`FS_IOC_GETFLAGS`, and the flag of a folder that ignores case on a disk that does not."""
DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³]) *(\.|$)", re.IGNORECASE)
"""Names of devices on Windows, with any suffix."""


def _visible(name: str) -> str:
    return "".join(c for c in name if category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")


def _caseless(name: str) -> str:
    """Fold by more than any disk does: a number too many in a name does no harm."""
    return name.upper().casefold().replace("i\u0307", "i")


FOLDS: dict[str, tuple[str, Callable[[str], str]]] = {
    "joiners": ("a\u200db", _visible),  # and the selectors of emoji
    "forms": ("\u00e9", lambda name: normalize("NFD", name)),
    "compatible": ("\ufb01", lambda name: normalize("NFKD", name)),
    "case": ("Aa", _caseless),
}
"""What a disk may not distinguish → letters that show it, and the function that makes names one.
They are applied in this order."""
REFUSED = {
    **{letter: re.escape(letter) for letter in '<>:"\\|?*\x7f'},
    "\x01": "[\x01-\x1f]",
    "\udcff": "[\ud800-\udfff]",
    "\u00e9": "[\u0080-\u00ff]",
    "\u8a9e": "[\u0100-\ud7ff\ue000-\uffff]",
    "\U0001f600": "[\U00010000-\U0010ffff]",
}
"""Letter that a disk may refuse → pattern of all those that it then refuses. Lone surrogates stand
for bytes that are no UTF-8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NameRules:
    """What a disk does with the names of files."""

    folds: tuple[str, ...] = ()
    """What it does not distinguish, of `FOLDS`."""
    refused: tuple[str, ...] = ()
    """Patterns of letters that it does not take, or changes."""
    ends: str = ""
    """Letters that it does not take, or removes, at the end of a name."""
    devices: bool = False
    """Whether it refuses the names of devices."""
    longest: int = LONGEST_NAME
    """Largest size of a name, in bytes."""

    def folded(self, path: str) -> str:
        """Return a text that is the same for all paths that are one on this disk."""
        for fold in self.folds:
            path = FOLDS[fold][1](path)
        return path

    def taken(self, name: str, *, last: bool = False) -> str:
        """Return a name of any length that the disk takes, with `_` for what it refuses. `last`: a
        suffix follows."""
        for letters in self.refused:
            name = re.sub(letters, "_", name)
        if self.ends and not last:
            name = re.sub(f"[{self.ends}]+$", "_", name)
        return f"_{name}" if self.devices and DEVICE.match(name) else name


ORDINARY = NameRules()
_flags: dict[tuple[int, int], int] = {}
"""Device and inode of a folder → its flag."""
_known: dict[tuple[int, int], tuple[float, NameRules]] = {}
"""Device, and a folder's flag → when it was probed, in monotonic seconds, and what was found."""


def rules_in(folder: str | os.PathLike[str], *, probe: bool = True) -> NameRules:
    """Return what the disk of a folder does with names. The disk is probed now and then, and
    with `probe` only, since that writes. A folder that takes no files counts as ordinary."""
    rules = ORDINARY
    with contextlib.suppress(OSError):
        place = _place_of(os.path.abspath(folder))
        probed, rules = _known.get(place, (-KEPT_SECONDS, ORDINARY))
        if probe and time.monotonic() - probed > KEPT_SECONDS:
            rules = _probe(Path(folder))
            _known[place] = time.monotonic(), rules
    return rules


def path_on_disk(path: str) -> str:
    """Return the existing path that differs from this one only in how its letters are composed, as
    names of a Mac do (NFD); empty if there is none, or more than one."""
    found = ""
    for part in Path(path).parts:
        place = os.path.join(found, part)
        if not os.path.lexists(place):
            name, alike = normalize("NFC", part), list[str]()
            with contextlib.suppress(OSError, ValueError):
                alike = [n for n in os.listdir(found or ".") if normalize("NFC", n) == name]
            if len(alike) != 1:
                return ""
            place = os.path.join(found, alike[0])
        found = place
    return found


def one_name(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a file, the same for all names under which the disk finds it. A
    disk that was not probed is judged by this file, without writing."""
    folder, name = os.path.split(whole := os.path.abspath(path))
    with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in the name
        there = folder  # a folder may not be made yet
        while not os.path.isdir(there):
            there = os.path.dirname(there)
        if (place := _place_of(there)) in _known:
            rules = _known[place][1]
            return _folded(whole, place, rules) if rules.folds else whole
        found = os.lstat(path)
        for _, fold in FOLDS.values():
            with contextlib.suppress(OSError):
                other = fold(name)
                if other != name and os.path.samestat(found, os.lstat(f"{folder}/{other}")):
                    name = other
    return os.path.join(folder, name)


def _folded(path: str, place: tuple[int, int], rules: "NameRules") -> str:
    """Return a path with its parts folded up to the root of the disk."""
    parts: list[str] = []
    while (folder := os.path.dirname(path)) != path:
        if os.path.isdir(folder) and _place_of(folder) != place:
            break
        parts.append(rules.folded(os.path.basename(path)))
        path = folder
    return os.path.join(path, *reversed(parts))


def _place_of(folder: str) -> tuple[int, int]:
    found = os.stat(folder)
    if (key := (found.st_dev, found.st_ino)) not in _flags:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        _flags[key] = 0
        with contextlib.suppress(OSError):  # most file systems have no flags
            flags = fcntl.ioctl(handle, GET_FLAGS, bytes(8))
            _flags[key] = int.from_bytes(flags[:4], "little") & IGNORES_CASE
        os.close(handle)
    return found.st_dev, _flags[key]


def _probe(folder: Path) -> NameRules:
    """Probe the disk in a folder of its own. Raises OSError if nothing can be written there."""
    with own_folder(folder, PROBE) as place:
        return _tried(os.fsencode(place))


def _tried(place: bytes) -> NameRules:
    """Try few names in an empty folder and, unless the disk takes all of them and keeps them apart,
    each kind alone. Raises OSError if it does not even take a plain name."""

    def path_of(name: str) -> bytes:
        return place + b"/" + name.encode("utf-8", errors="surrogateescape")

    def takes(name: str) -> bool:
        try:
            os.close(os.open(path_of(name), os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False
        return True

    def has(name: str) -> bool:
        return os.path.lexists(path_of(name))

    def keeps(letter: str) -> bool:  # and does not change or drop it
        stem, others = ord(letter), {"", "_", "?"} - {letter}
        return takes(f"{stem}{letter}k") and not any(has(f"{stem}{each}k") for each in others)

    every, shown = "".join(REFUSED), "".join(letters for letters, _ in FOLDS.values())
    long = every + "x" * (LONGEST_NAME - 1 - len(every.encode("utf-8", "surrogateescape"))) + "."
    others = [shown.replace(letters, fold(letters)) for letters, fold in FOLDS.values()]
    takes_all = all(map(takes, (long, shown, "aux", "b ")))
    if takes_all and not any(map(has, (*others, long[:-1], "b"))):
        return ORDINARY
    is_there, sizes = takes("plain"), range(1, LONGEST_NAME + 1)
    rules = NameRules(
        folds=tuple(
            n for n, (each, fold) in FOLDS.items() if takes(f"f{each}") and has(f"f{fold(each)}")
        ),
        refused=tuple(kind for letter, kind in REFUSED.items() if not keeps(letter)),
        ends="".join(end for end in ". " if not takes(f"e{end}") or has("e")),
        devices=not takes("aux"),
        longest=bisect_left(sizes, True, key=lambda size: not takes("x" * size)),
    )
    if not (is_there and has("plain")):  # another machine may take this process for dead
        raise OSError(errno.EIO, "names cannot be tried")
    return rules


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

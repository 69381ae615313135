"""Distinguishes generated text files from texts that users wrote.

A generated file is recognized by its own digest, and by that of its medium or both paths. It is
still recognized after a folder was moved or another `OUT` was given, and after another medium took
the name of its own.

Texts that users wrote for media are non-blank `.txt` files that no run wrote. A text belongs to the
medium with the same stem. It has one line per chunk, as the texts of a run have. If the number of
lines differs, the whole text applies to every chunk. The search for these texts writes nothing and
runs no model.
"""

import codecs
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.digests import digest_of
from artifacts.disk.faults import disk_faults, fault_of
from artifacts.disk.files import HALF, replace_file, write_text
from artifacts.disk.names import TEXT_FORMATS, Naming, one_name
from artifacts.disk.regular_files import (
    irreplaceable_kind,
    link_out,
    open_below,
    open_regular,
    read_bytes,
    user_text,
)
from artifacts.records.keys import (
    DIGESTS,
    ContentDigests,
    append_line,
    content_key,
    hash_file,
    read_lines,
)
from artifacts.records.store import Store
from artifacts.texts.affixes import FixedText
from artifacts.wording import counted
from flows.core.media.media_file import kind_of

WRITTEN = "written.jsonl"
"""File of a store with the record; in a folder of outputs it is hidden."""
DIGITS = 32
"""Hex digits of the digest of a generated file; a million of them take 50 MB."""
OF_LABELS = "labels "
"""Prefix of the format for texts that hold labels instead of captions."""
BLANK_BYTES = 1 << 10
"""Largest file, in bytes, that is checked for containing only spaces."""
LARGEST, LARGEST_TEXT = 1 << 32, 1 << 26
"""Most bytes of a generated file, and of the text of a medium. An archive may hold a sparse file of
terabytes."""
About = tuple[str, ...]
"""Digest of the medium that a text is about, and where the text lies."""
ANY: About = ("",)
"""The same of a file that is about no medium."""
AROUND = "around"
"""First value of a line with the text that a run put around the captions in a file."""


def about(content: str, path: Path, place: str, out: Path | None = None) -> About:
    """Return what a text at a path is about: a medium with this content, or the one that was at the
    same place before, which this one replaced, or of the same name, in a folder that was moved.
    `out`: folder of outputs, in which the text may lie."""
    inside = out is not None and path.is_relative_to(out)
    name = path.relative_to(out) if inside and out is not None else Path(*path.parts[-2:])
    return content, f"{one_name(path)} {place}", f"{name} of {PurePosixPath(place).name}"


class GeneratedFiles:
    """The generated files, recorded by digest in the store, and in the folder of outputs for runs
    with another store."""

    def __init__(self, store: Store | None, of: str = "", out: Path | None = None) -> None:
        """Record texts with the prefix `of`. Texts with another prefix do not count as
        generated."""
        self._in_store = None if store is None else store.local / WRITTEN
        self._in_out = None if out is None else out / f".{WRITTEN}"
        self._of = of
        self._around: dict[str, FixedText] = {}
        """Path of a text, or content of its medium → what the last run put around captions."""

    @cached_property
    def _each(self) -> dict[Path, set[str]]:
        paths = filter(None, (self._in_store, self._in_out))
        by_path: dict[Path, set[str]] = {path: set() for path in paths}
        for path, keys in by_path.items():
            for line in read_lines(path):
                keys.update(map(str, line))
                if line[:1] == [AROUND] and path == self._in_store:
                    _, place, before, after = line
                    self._around[place] = FixedText(prefixes=tuple(before), suffix=after)
        return by_path

    def __bool__(self) -> bool:
        return any(self._each.values())

    def has(self, form: str, sha256: str, about: About = ANY) -> bool:
        """Return whether a run wrote a text with this digest, in this format, about any of
        these."""
        return self._has(self._of + form, sha256, about)

    def _has(self, form: str, sha256: str, about: About) -> bool:
        keys = {_key(form, place, sha256) for place in about}
        return bool(sha256) and any(keys & known for known in self._each.values())

    def has_of_any_kind(self, form: str, sha256: str, about: About) -> bool:
        """Return the same of texts of captions and of labels, whatever `of` is."""
        return any(self._has(f"{kind}{form}", sha256, about) for kind in ("", OF_LABELS))

    def is_of_another(self, form: str, text: str, about: About) -> bool:
        """Return whether a run wrote a text, of captions or of labels, at this place about another
        content than there is now, the first of `about`."""
        sha256, has = hashlib.sha256(text.encode()).hexdigest(), self.has_of_any_kind
        return has(form, sha256, about) and not has(form, sha256, about[:1])

    def add(self, form: str, sha256: str, about: About = ANY) -> None:
        """Record a text that is written, or about to be. Raises EnvironmentFault: what is not
        recorded would count as a user's."""
        for path, known in self._each.items():
            new = {_key(self._of + form, place, sha256) for place in about} - known
            known |= new
            if new:
                self._append(path, sorted(new))

    def _append(self, path: Path, line: list[Any]) -> None:
        is_in_store = path == self._in_store
        try:
            append_line(path, line, os.open if is_in_store else open_below)
        except OSError as error:
            if is_in_store:  # and not the copy in OUT, maybe a link
                raise fault_of(error, path) from error

    def put_around(self, about: About, fixed: FixedText) -> None:
        """Record in the store what a run put around the captions in a text. Raises
        EnvironmentFault."""
        for place in (place for place in about if self.around((place,)) != fixed):
            self._around[place] = fixed
            if self._in_store is not None:
                self._append(self._in_store, [AROUND, place, [*fixed.prefixes], fixed.suffix])

    def around(self, about: About) -> FixedText:
        """Return what the last run put around the captions in a text, the first of `about` that is
        known."""
        known = (self._around[of] for of in about if self and of in self._around)
        return next(known, FixedText())

    @property
    def puts_around(self) -> bool:
        """Return whether any run put something around captions."""
        return bool(self) and bool(self._around)

    def update(
        self, path: Path, content: bytes, form: str, about: About = ANY, *, replace: bool
    ) -> bool:
        """Write a file, unless a user wrote or edited it and `replace` is not set. Return whether
        it holds the content. A blank text may always be replaced. Raises EnvironmentFault."""
        largest = LARGEST_TEXT if form in TEXT_FORMATS else LARGEST
        old_digest, sha256 = digest_at(path, largest), hashlib.sha256(content).hexdigest()
        is_unchanged = old_digest == sha256
        is_users = (
            os.path.lexists(path) and not is_unchanged and not self.has(form, old_digest, about)
        )
        is_users = is_users and not (form in TEXT_FORMATS and is_blank(path))
        if path.is_dir() or irreplaceable_kind(path) or (is_users and not replace):
            return False
        self.add(form, sha256, (*about, one_name(path)))
        if not is_unchanged:
            write_text(path, [content.decode()])
        return True

    def renew(self, path: Path, write: Callable[[Path], None]) -> None:
        """Let `write` make a file of rows, and record it before it gets its name. Raises
        EnvironmentFault."""
        write(half := path.with_name(f"{HALF}{path.name}"))
        self.add(path.name, digest_at(half))
        with disk_faults(path):
            replace_file(half, path)


def _key(form: str, about: str, sha256: str) -> str:
    return digest_of([form, about, sha256])[:DIGITS]


def is_blank(path: Path) -> bool:
    """Return whether the file exists and contains only spaces."""
    try:
        if path.is_symlink() or path.stat().st_size > BLANK_BYTES:
            return False
        with open_regular(path) as file:
            return not file.read(BLANK_BYTES).removeprefix(codecs.BOM_UTF8).strip()
    except OSError:
        return False


def digest_at(path: Path, largest: int = LARGEST) -> str:
    """Return the SHA-256 of a file, or an empty string if it cannot be read, or has more bytes than
    a run writes."""
    try:
        return hash_file(path) if path.is_file() and path.stat().st_size <= largest else ""
    except OSError:
        return ""


MAX_BYTES = 1 << 16
"""Size above which a text counts as no caption and is left alone, in bytes."""


FORM = "txt"


class HandwrittenTexts:
    """User-written texts, distinguished from the texts that runs of one store wrote."""

    def __init__(self, store: Store, out: Path) -> None:
        """`out`: folder of outputs, where texts of the user may lie, too."""
        self._out = out
        self.unread: dict[Path, str] = {}
        """Texts that are not read → why."""
        self._generated = GeneratedFiles(store, out=out)

    def of(self, places: Iterable[Path], digest: str, place: str) -> tuple[Path, str] | None:
        """Return the first user-written text among `places` for this content, with its path. Return
        None if there is none. `place`: where the medium lies."""
        for path in places:
            try:
                content = read_bytes(path, MAX_BYTES)
            except (OSError, ValueError):
                continue
            sha256, of = hashlib.sha256(content).hexdigest(), about(digest, path, place, self._out)
            # What a run wrote there about another medium is no text of a user, either.
            anyone = (*of, one_name(path))
            if self._generated.has_of_any_kind(FORM, sha256, anyone):
                continue
            root = self._out if path.is_relative_to(self._out) else path.parent
            if why := link_out(path, root):
                self.unread[path] = f"{why}; put a copy there if it is yours"
                continue
            try:
                text = user_text(content, path)
            except OSError as error:
                self.unread[path] = str(error.strerror)
                continue
            if text.strip() and not self._generated.is_of_another(FORM, text, of):
                return path, text
        return None

    def notes(self) -> Iterator[str]:
        """Yield a note on texts that are not read."""
        if self.unread:
            path, why = next(iter(self.unread.items()))
            yield f"not read: {counted(len(self.unread), 'text')} of users ({path}: {why})"


class TextRecords:
    """What runs of a store wrote beside media."""

    def __init__(self, store: Store) -> None:
        self._generated = GeneratedFiles(store)
        self._digests = ContentDigests(store.local / DIGESTS)

    def are_other(self, text: Path, medium: Path) -> bool:
        """Return whether a run wrote a text, and not about what its medium holds now. Raises
        OSError."""
        sha256 = digest_at(text, MAX_BYTES)
        place = (one_name(text), *about("", text, str(medium))[1:])
        if not self._generated.has_of_any_kind(FORM, sha256, place):
            return False
        return not self._generated.has_of_any_kind(FORM, sha256, (self._content(medium),))

    def around(self, text: Path, medium: Path) -> FixedText:
        """Return what a run put around the caption in the text of a medium. Raises OSError."""
        if not self._generated.puts_around:
            return FixedText()
        return self._generated.around((one_name(text), self._content(medium)))

    def _content(self, medium: Path) -> str:
        return content_key(self._digests.of(medium), kind_of(medium.name))


class TextsIn:
    """The texts in a folder of outputs, by names that its disk takes."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._fitting = Naming(out).fitting
        self._spelled: dict[str, Path] = {}
        """Text → its path as the first medium spells it, whose text it is."""

    def of(self, media_path: Path, name: str) -> Iterator[Path]:
        """Yield the possible paths of a medium's text that are not another's."""
        for place in text_paths(media_path, name):
            path = self._out / f"{self._fitting(str(place.with_suffix('')))}{place.suffix}"
            if self._spelled.setdefault(one_name(path), path) == path:
                yield path


def split_by_chunk(text: str, chunks: int) -> list[str] | None:
    """Return one line per chunk if the text has exactly one line for each, else None."""
    for lines in (text.removesuffix("\n").split("\n"), text.rstrip().split("\n")):
        if len(lines) == chunks:
            return [line.strip() for line in lines]
    return None


def text_paths(path: Path, name: str = "") -> list[Path]:
    """Return the possible paths of a medium's text: the suffix added to the medium's suffix, or in
    its place. The `name` of a prompt stands before the suffix."""
    named = path.with_name(f"{path.stem}.{name}{path.suffix}") if name else path
    return [named.with_name(f"{named.name}.{FORM}"), named.with_suffix(f".{FORM}")]

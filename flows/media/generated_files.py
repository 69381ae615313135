"""Distinguishes generated text files from files that a user wrote or edited.

A generated file is recognized by its own digest, and by that of its medium or both paths. It is
still recognized after a folder was moved or another `OUT` was given, and after another medium took
the name of its own.
"""

import codecs
import hashlib
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.disk_names import one_name
from artifacts.edits import FixedText
from artifacts.files import HALF, replace_file, write_text
from artifacts.jsonl_log import Opener, append_line, read_lines
from artifacts.keys import digest_of, hash_file
from artifacts.regular_files import kept_thing, open_below, open_regular
from artifacts.store import Store, fault_of
from flows.options.formats import BESIDE

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
        self._memories: dict[Path, Opener] = {}
        if store is not None:
            self._memories[store.local / WRITTEN] = os.open
        if out is not None:
            self._memories[out / f".{WRITTEN}"] = open_below
        self._of = of
        self._around: dict[str, FixedText] = {}
        """Path of a text, or content of its medium → what the last run put around captions."""

    @cached_property
    def _each(self) -> dict[Path, set[str]]:
        found: dict[Path, set[str]] = {path: set() for path in self._memories}
        for path, keys in found.items():
            for line in read_lines(path):
                keys.update(map(str, line))
                if line[:1] == [AROUND] and self._memories[path] is os.open:
                    _, place, before, after = line
                    self._around[place] = FixedText(prefixes=tuple(before), suffix=after)
        return found

    def __bool__(self) -> bool:
        return any(self._each.values())

    def has(self, form: str, sha256: str, about: About = ANY) -> bool:
        """Return whether a run wrote a text with this digest, in this format, about any of
        these."""
        return self._has(self._of + form, sha256, about)

    def _has(self, form: str, sha256: str, about: About) -> bool:
        keys = {_key(form, each, sha256) for each in about}
        return bool(sha256) and any(keys & known for known in self._each.values())

    def has_of_any_kind(self, form: str, sha256: str, about: About) -> bool:
        """Return the same of texts of captions and of labels, whatever `of` is."""
        return any(self._has(f"{kind}{form}", sha256, about) for kind in ("", OF_LABELS))

    def is_of_another(self, form: str, text: str, about: About) -> bool:
        """Return whether a run wrote a text, of captions or of labels, at this place about another
        content than there is now, the first of `about`. A part of a joined text has no line end."""
        digests = {
            hashlib.sha256(each.encode()).hexdigest() for each in (text, f"{text.rstrip()}\n")
        }
        has = self.has_of_any_kind
        return any(has(form, each, about) for each in digests) and not any(
            has(form, each, about[:1]) for each in digests
        )

    def add(self, form: str, sha256: str, about: About = ANY) -> None:
        """Record a text that is written, or about to be. Raises EnvironmentFault: what is not
        recorded would count as a user's."""
        for path, known in self._each.items():
            new = {_key(self._of + form, each, sha256) for each in about} - known
            known |= new
            if new:
                self._append(path, sorted(new))

    def _append(self, path: Path, line: list[Any]) -> None:
        try:
            append_line(path, line, self._memories[path])
        except OSError as error:
            if self._memories[path] is os.open:  # and not the copy in OUT, maybe a link
                raise fault_of(error, path) from error

    def put_around(self, about: About, fixed: FixedText) -> None:
        """Record in the store what a run put around the captions in a text. Raises
        EnvironmentFault."""
        stores = [path for path, opener in self._memories.items() if opener is os.open]
        for place in (each for each in about if self.around((each,)) != fixed):
            self._around[place] = fixed
            for path in stores:
                self._append(path, [AROUND, place, [*fixed.prefixes], fixed.suffix])

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
        largest = LARGEST_TEXT if form in BESIDE else LARGEST
        old_digest, sha256 = digest_at(path, largest), hashlib.sha256(content).hexdigest()
        is_unchanged = old_digest == sha256
        is_users = (
            os.path.lexists(path) and not is_unchanged and not self.has(form, old_digest, about)
        )
        is_users = is_users and not (form in BESIDE and is_blank(path))
        if path.is_dir() or kept_thing(path) or (is_users and not replace):
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
        try:
            replace_file(half, path)
        except OSError as error:
            raise fault_of(error, path) from error

    def is_edited(self, path: Path) -> bool:
        """Return whether a file of rows holds anything that no run wrote."""
        return bool(digest := digest_at(path)) and not self.has(path.name, digest)


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

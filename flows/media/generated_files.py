"""Tells generated text files from files that a user wrote or edited.

A generated file is recognized by its own digest and that of its medium. It is still recognized
after a folder was moved or another `OUT` was given.
"""

import codecs
import hashlib
import os
from functools import cached_property
from pathlib import Path

from artifacts.files import write_text
from artifacts.keys import digest_of, hash_file
from artifacts.lines import append_line, read_lines
from artifacts.regular import open_regular
from artifacts.store import Store
from flows.options.formats import BESIDE

DIGITS = 32
"""Hex digits by which a text is remembered: a million of them take 50 MB."""
OF_LABELS = "labels "
"""What texts are of that hold labels and no captions."""
BLANK_BYTES = 1 << 10
"""Largest size of a file that is looked at for whether it holds only spaces."""


class GeneratedFiles:
    """The generated files, recorded in the store by digest."""

    def __init__(self, store: Store, of: str = "") -> None:
        """Remember texts `of` one kind; those of another, such as captions, are not its own."""
        self._memory = store.local / "written.jsonl"
        self._of = of

    @cached_property
    def _known(self) -> set[str]:
        return {str(line[0]) for line in read_lines(self._memory) if line}

    def __bool__(self) -> bool:
        return bool(self._known)

    def has(self, form: str, about: str, sha256: str) -> bool:
        """Return whether we once wrote a text of that digest, in this form, about this content."""
        return bool(sha256) and _key(self._of + form, about, sha256) in self._known

    def add(self, form: str, about: str, sha256: str) -> None:
        """Remember what is written, or about to be."""
        key = _key(self._of + form, about, sha256)
        if key not in self._known:
            self._known.add(key)
            append_line(self._memory, [key])

    def bring(self, path: Path, content: bytes, form: str, about: str, *, replace: bool) -> bool:
        """Bring a file to this content, unless people wrote or edited what is there and it is not
        to be replaced; return whether it holds the content. A text without a word is nobody's.
        Raises EnvironmentFault."""
        before, sha256 = digest_at(path), hashlib.sha256(content).hexdigest()
        same = before == sha256
        theirs = os.path.lexists(path) and not same and not self.has(form, about, before)
        theirs = theirs and not (form in BESIDE and is_blank(path))
        if path.is_dir() or (theirs and not replace):
            return False
        self.add(form, about, sha256)
        if not same:
            write_text(path, [content.decode()])
        return True


def _key(form: str, about: str, sha256: str) -> str:
    return digest_of([form, about, sha256])[:DIGITS]


def is_blank(path: Path) -> bool:
    """Return whether a file is there that holds no letter."""
    try:
        if path.is_symlink() or path.stat().st_size > BLANK_BYTES:
            return False
        with open_regular(path) as file:
            return not file.read(BLANK_BYTES).removeprefix(codecs.BOM_UTF8).strip()
    except OSError:
        return False


def digest_at(path: Path) -> str:
    """Return the SHA-256 of what lies there; empty where that is no file that can be read."""
    try:
        return hash_file(path) if path.is_file() else ""
    except OSError:
        return ""

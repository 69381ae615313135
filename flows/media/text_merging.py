"""Inserts a caption before or after a user's text in a text file, and finds it again later.

For each such text the store holds digests of the caption (with its separator) and of the user's
part. A caption that is found again is replaced, whatever became of the user's part. Once a user
edits the caption, the whole text is the user's.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from artifacts.files import write_text
from flows.media.generated_files import GeneratedFiles
from flows.options.formats import APPEND

LONGEST_BYTES = 1 << 16
"""A longer text is no caption, and is left alone: to look for a part in one takes a second."""
MARK = "\ufeff"
"""Some editors of Windows put it before everything else, where it has to stay."""
ENDS = (".", "!", "?", ",", ";", ":", "…")
"""Signs after which no comma is put."""
BETWEEN = ", \n"
"""Letters at which one part may end and the other begin."""


class JoinedTexts:
    """Text files of one format that contain both a user's text and a caption."""

    def __init__(self, own: GeneratedFiles, form: str) -> None:
        self._own = own
        self._form = form
        self.edited: list[str] = []
        """Names of those in which a person edited our part."""

    def bring(self, path: Path, about: str, ours: str, rule: str) -> bool:
        """Put a caption to what is there, or in the place of our earlier one; return whether the
        text holds it now. It does not where a person edited our part, or it is no text. Raises
        EnvironmentFault."""
        now = _read(path)
        if now is None:
            return False
        caption, body = ours.rstrip(), now.removeprefix(MARK)
        theirs = self.theirs_in(about, body)
        is_own = self._own.has(self._form, about, _digest(now))
        if is_own or not (body if theirs is None else theirs).strip():
            return self._own.bring(path, ours.encode(), self._form, about, replace=True)
        if theirs is None:
            if caption in body:
                return True
            if self._had_ours(path, about, body):
                self.edited.append(path.name)
                return False
            theirs = body
        made, head, tail = joined(theirs, caption, rule)
        self._remember(path, about, theirs, head, tail)
        made = now[: len(now) - len(body)] + made
        if made != now:
            write_text(path, [made])
        return True

    def holds(self, path: Path, about: str) -> bool:
        """Return whether a text holds a part of ours beside a person's."""
        if not self._knows("any", "", ""):
            return False
        now = _read(path)
        return now is not None and self.theirs_in(about, now.removeprefix(MARK)) is not None

    def theirs_in(self, about: str, body: str) -> str | None:
        """Return the person's part of a text in which ours is what it was, if there is one. Of
        several that could be ours the longest is."""
        if not self._knows("any", "", ""):
            return None
        text = body.rstrip()
        for at in _borders(text):
            if self._knows("tail", about, text[at:]):
                return text[:at]
        for at in reversed(list(_borders(text))):
            if self._knows("head", about, text[: at + 1]):
                return body[at + 1 :]
        return None

    def _had_ours(self, path: Path, about: str, body: str) -> bool:
        """Return whether a text in which our part is not found has one that was edited."""
        if self._knows("theirs", about, body.strip()):
            return False  # a person took it out again, or the run was killed before it was in
        if self._knows("at", about, str(path)):
            return True
        parts = ((body[:at], body[at + 1 :]) for at in _borders(body))
        return any(self._knows("theirs", about, part.strip()) for pair in parts for part in pair)

    def _remember(self, path: Path, about: str, theirs: str, head: str, tail: str) -> None:
        """Remember the parts before they are written."""
        parts = {"head": head, "tail": tail, "theirs": theirs.strip(), "at": str(path)}
        self._own.add(f"{self._form} any", "", _digest(""))
        for name, part in parts.items():
            if part:
                self._own.add(f"{self._form} {name}", about, _digest(part))

    def _knows(self, name: str, about: str, part: str) -> bool:
        return self._own.has(f"{self._form} {name}", about, _digest(part))


def joined(theirs: str, caption: str, rule: str) -> tuple[str, str, str]:
    """Return both in one text, and our part with what is between: at its head, or at its tail."""
    if not caption:
        return f"{theirs.rstrip()}\n", "", ""
    if rule == APPEND:
        first = theirs.rstrip()
        tail = _between(first, caption) + caption
        return f"{first}{tail}\n", "", tail
    second = theirs.strip()
    head = caption + _between(caption, second)
    return f"{head}{second}\n", head, ""


def _between(first: str, second: str) -> str:
    """Return what is put between two texts: tags and sentences share a line, lines do not."""
    if "\n" in first or "\n" in second:
        return "\n"
    return " " if first.endswith(ENDS) else ", "


def _borders(text: str) -> Iterator[int]:
    return (at for at, letter in enumerate(text) if letter in BETWEEN)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _read(path: Path) -> str | None:
    """Return what a file says; None where that is no text that another one can be put to."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LONGEST_BYTES:
            return None
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None

"""Inserts a caption before or after a user's text in a text file, and finds it again later.

For each such text the store holds digests of the caption (with its separator) and of the user's
part. A caption that is found again is replaced, whatever the user's part has become. Once a user
edits the caption, the whole text is the user's.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from artifacts.disk_names import one_name
from artifacts.files import write_text
from artifacts.regular_files import user_text
from flows.media.generated_files import ANY, About, GeneratedFiles
from flows.options.formats import APPEND

MAX_BYTES = 1 << 16
"""Size above which a text counts as no caption and is left alone, in bytes. Searching such a text
for a part takes a second."""
MARK = "\ufeff"
"""Byte order mark, which some Windows editors write first; it has to stay first."""
NO_COMMA_AFTER = (".", "!", "?", ",", ";", ":", "…")
"""Characters after which no comma is inserted."""
BOUNDARIES = ", \n"
"""Characters at which one part may end and the other begin."""


class JoinedTexts:
    """Text files of one format that contain both a user's text and a caption."""

    def __init__(self, own: GeneratedFiles, form: str) -> None:
        self._own = own
        self._form = form
        self.edited: list[str] = []
        """Names of texts in which a user edited the caption."""

    def update(self, path: Path, about: About, caption_text: str, rule: str) -> bool:
        """Insert a caption into a text, or replace its earlier caption. Return whether the text
        holds the caption now. It does not if a user edited the caption, or the file is no text.
        Raises EnvironmentFault."""
        text = _read(path)
        if text is None:
            return False
        caption, body = caption_text.rstrip(), text.removeprefix(MARK)
        user_part = self.user_part(about, body)
        if user_part is not None and self._own.is_of_another(self._form, user_part, about):
            user_part = ""
        is_own = self._own.has(self._form, _digest(text), about)
        # Labels of this content are kept as a user's text is; texts of an earlier one are wrong.
        is_own |= self._own.is_of_another(self._form, text, about)
        if is_own or not (body if user_part is None else user_part).strip():
            return self._own.update(path, caption_text.encode(), self._form, about, replace=True)
        if user_part is None:
            if has_words(body, caption):
                return True
            if self._had_caption(path, about, body):
                self.edited.append(path.name)
                return False
            user_part = body
        merged, head, tail = joined(user_part, caption, rule)
        self._remember(path, about, user_part, head, tail)
        merged = text[: len(text) - len(body)] + merged
        if merged != text:
            write_text(path, [merged])
        return True

    def holds(self, path: Path, about: About) -> bool:
        """Return whether a text holds a caption next to a user's part."""
        if not self._knows("any", ANY, ""):
            return False
        text = _read(path)
        return text is not None and self.user_part(about, text.removeprefix(MARK)) is not None

    def user_part(self, about: About, body: str) -> str | None:
        """Return the user's part of a text whose caption is unchanged, or None. The longest
        possible caption counts."""
        if not self._knows("any", ANY, ""):
            return None
        text = body.rstrip()
        for at in _boundaries(text):
            if self._knows("tail", about, text[at:]):
                return text[:at]
        for at in reversed(list(_boundaries(text))):
            if self._knows("head", about, text[: at + 1]):
                return body[at + 1 :]
        return None

    def _had_caption(self, path: Path, about: About, body: str) -> bool:
        """Return whether a text without a known caption holds an edited one."""
        if self._knows("theirs", about, body.strip()):
            return False  # the user removed the caption, or the run was killed before it wrote it
        if self._knows("at", about, one_name(path)):
            return True
        parts = ((body[:at], body[at + 1 :]) for at in _boundaries(body))
        return any(self._knows("theirs", about, part.strip()) for pair in parts for part in pair)

    def _remember(self, path: Path, about: About, user_part: str, head: str, tail: str) -> None:
        """Store the digests of the parts before the text is written."""
        parts = {"head": head, "tail": tail, "theirs": user_part.strip(), "at": one_name(path)}
        self._own.add(f"{self._form} any", _digest(""))
        for name, part in parts.items():
            if part:
                self._own.add(f"{self._form} {name}", _digest(part), about)

    def _knows(self, name: str, about: About, part: str) -> bool:
        return self._own.has(f"{self._form} {name}", _digest(part), about)


def has_words(text: str, part: str) -> bool:
    """Return whether a text holds this part as words of its own: `red` is not in `hundred`."""
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None


def joined(user_part: str, caption: str, rule: str) -> tuple[str, str, str]:
    """Return the joined text, and our part with its separator: (text, head, tail). Head or tail is
    empty."""
    if not caption:
        return f"{user_part.rstrip()}\n", "", ""
    if rule == APPEND:
        head_text = user_part.rstrip()
        tail = _separator(head_text, caption) + caption
        return f"{head_text}{tail}\n", "", tail
    tail_text = user_part.strip()
    head = caption + _separator(caption, tail_text)
    return f"{head}{tail_text}\n", head, ""


def _separator(head_text: str, tail_text: str) -> str:
    """Return the separator between two texts. Texts with line breaks are put on separate lines."""
    if "\n" in head_text or "\n" in tail_text:
        return "\n"
    return " " if head_text.endswith(NO_COMMA_AFTER) else ", "


def _boundaries(text: str) -> Iterator[int]:
    return (at for at, letter in enumerate(text) if letter in BOUNDARIES)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _read(path: Path) -> str | None:
    """Return the contents of a file, or None if it is no text to which a caption can be added."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        content = path.read_bytes()
        user_text(content, path)
        return content.decode()  # its mark and its line ends stay
    except OSError:
        return None

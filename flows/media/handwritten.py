"""Finds texts that users wrote for media: non-blank `.txt` files that no run wrote. Writes nothing
and runs no model.

A text belongs to the medium with the same stem. It has one line per chunk, as the texts of a run
have. If the number of lines differs, the whole text applies to every chunk.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from artifacts.regular import open_regular
from artifacts.store import Store
from flows.media.generated_files import OF_LABELS, GeneratedFiles
from flows.media.text_merging import LONGEST_BYTES, MARK, JoinedTexts, joined
from flows.options.formats import JOINED

FORM = "txt"


class HandwrittenTexts:
    """User-written texts, distinguished from the texts that runs of one store wrote."""

    def __init__(self, store: Store) -> None:
        self._captions = GeneratedFiles(store)
        self._labels = GeneratedFiles(store, OF_LABELS)
        self._joined = JoinedTexts(self._captions, FORM)

    def of(self, places: Iterable[Path], about: str) -> tuple[Path, str] | None:
        """Return the text that a person wrote at the first of these places that has one, about this
        content, with its place; None where nobody did."""
        for path in places:
            content = _content(path)
            if content is None:
                continue
            sha256 = hashlib.sha256(content).hexdigest()
            if any(own.has(FORM, about, sha256) for own in (self._captions, self._labels)):
                continue
            try:
                text = content.decode("utf-8").removeprefix(MARK)
            except UnicodeDecodeError:
                continue
            if text.strip():
                return path, text
        return None

    def with_caption(self, text: str, about: str, caption: str, rule: str) -> str:
        """Return a person's text with a caption as the rule of `--existing` joins the two."""
        if rule not in JOINED or self._joined.theirs_in(about, text) is not None or caption in text:
            return text  # it is in there already, or does not go in
        return joined(text, caption, rule)[0].rstrip()


def split_by_chunk(text: str, chunks: int) -> list[str] | None:
    """Return what a text says of each of so many chunks, where it has a line of each; else None."""
    for lines in (text.removesuffix("\n").split("\n"), text.rstrip().split("\n")):
        if len(lines) == chunks:
            return [line.strip() for line in lines]
    return None


def text_paths(path: Path, name: str = "") -> list[Path]:
    """Return where the text of a medium may lie beside it: with the suffix behind that of its own,
    or in its place. With the `name` of a prompt, that stands before the suffix."""
    named = path.with_name(f"{path.stem}.{name}{path.suffix}") if name else path
    return [named.with_name(f"{named.name}.{FORM}"), named.with_suffix(f".{FORM}")]


def _content(path: Path) -> bytes | None:
    """Return the bytes of a file that is short enough to be a text of a medium."""
    try:
        with open_regular(path) as file:
            content = file.read(LONGEST_BYTES + 1)
    except (OSError, ValueError):
        return None
    return content if len(content) <= LONGEST_BYTES else None

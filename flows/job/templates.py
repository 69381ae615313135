"""Puts what is known of a file into the prompt that is asked about it: `{name}`, `{folder}`,
`{tags}`. Knows no model."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from artifacts.regular import read_text
from artifacts.store import Store
from artifacts.words import counted
from flows.ledger.tasks import PREVIOUS, Medium
from flows.media.joining import JoinedTexts
from flows.media.media_files import MediaFile, writable
from flows.media.own_files import OF_LABELS, OwnFiles

NAME, FOLDER, TAGS = "{name}", "{folder}", "{tags}"
WORDS = re.compile("|".join(map(re.escape, (NAME, FOLDER, TAGS, PREVIOUS))))
"""The words that are replaced; other braces are left alone."""
FORM = "txt"
"""Form of a text of tags, beside the medium."""
MOST_BYTES = 1 << 16
"""Size of a text beyond which it holds no tags."""


def filled(
    files: Sequence[MediaFile], contents: Sequence[Medium], store: Store
) -> tuple[list[Medium], list[str]]:
    """Return the contents with prompts that tell of their files, and what people should know of
    that."""
    tags = Tags(store)
    found: list[Medium] = []
    for file, medium in zip(files, contents, strict=True):
        if not WORDS.search(medium.prompt):
            found.append(medium)
            continue
        told = {
            NAME: PurePosixPath(file.media_path).stem,
            FOLDER: writable(PurePosixPath(file.place).parent.name),
        }
        told[PREVIOUS] = PREVIOUS  # which is known when the chunk before is captioned
        if TAGS in medium.prompt:
            told[TAGS] = tags.of(file, medium)
        prompt = WORDS.sub(lambda word, told=told: told[word[0]], medium.prompt)  # type: ignore[misc]
        found.append(replace(medium, prompt=prompt))
    return found, tags.notes()


class Tags:
    """The texts beside media that people wrote, or that hold labels."""

    def __init__(self, store: Store) -> None:
        self._captions = OwnFiles(store)
        self._labels = OwnFiles(store, OF_LABELS)
        self._joined = JoinedTexts(self._captions, FORM)
        self._lacking: dict[Path, None] = {}

    def of(self, file: MediaFile, medium: Medium) -> str:
        """Return the tags of a file in one line; empty where there are none, which is noted."""
        try:
            text = read_text(file.path.with_suffix(f".{FORM}"), MOST_BYTES, "utf-8-sig")
        except (OSError, ValueError):
            text = ""
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        # What a model said of it is nothing to be told to a model.
        if self._captions.has(FORM, medium.digest, sha256):
            text = ""
        elif (theirs := self._joined.theirs_in(medium.digest, text)) is not None:
            text = theirs
        if self._labels.has(FORM, medium.digest, sha256):
            labels = (label.strip() for line in text.splitlines() for label in line.split(","))
            text = ", ".join(dict.fromkeys(filter(None, labels)))
        if not text.strip():
            self._lacking[file.path] = None
        return " ".join(text.split())

    def notes(self) -> list[str]:
        """Return what people should know: which files have none."""
        if not self._lacking:
            return []
        first = writable(next(iter(self._lacking)).name)
        return [
            f"{TAGS} is empty in the prompt of {counted(len(self._lacking), 'file')}, such as "
            f"{first}: no text that a person wrote, or that holds labels, lies beside it as .{FORM}"
        ]

"""The lines of `media.jsonl`, `captions.jsonl` and `failures.jsonl` as commands read them again. A
user may have edited these files."""

import os
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from artifacts.disk.json_types import Count, Number, Text
from artifacts.texts.questions import QuestionAnswer

FILE = "file://"


def path_at(url: str) -> str:
    """Return the path that a `url` of a line names; empty if it is empty."""
    return os.fsdecode(unquote_to_bytes(url.removeprefix(FILE)))


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaRow:
    """A medium of a run."""

    media_path: Text
    source: Text
    kind: Text
    url: Text
    """Where it lies, as `file://` with a quoted path; empty: unknown."""
    captions: Count
    """Number of its rows in the outputs."""
    address: Text = ""
    """Address of a remote medium."""
    content: Text = ""
    """Digest of its content; empty: unknown."""
    bytes: Count | None = None
    modified: Count | None = None
    """Size, and nanoseconds since the epoch, when it was read."""
    text: Text = ""
    """Name of the text beside it that is its caption, in a review of texts."""
    digests: list[Text] = field(default_factory=list)
    """Digests that this text may have: as it was read or written, or is about to be written."""

    @property
    def name(self) -> tuple[str, str]:
        return self.source, self.media_path

    @property
    def path(self) -> str:
        """Return the path of the medium; empty if unknown."""
        return path_at(self.url)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRow:
    """A caption of a run. Fields are those of `Caption`."""

    media_path: Text
    source: Text
    start: Number
    end: Number
    caption: Text
    features: Text = ""
    prompt: Text = ""
    name: Text = ""
    tokens: Count = 0
    ended: Text = ""
    logprob: Number | None = None
    margin: Number | None = None
    margin_at: Count | None = None
    original: str = ""
    review: Text = ""
    warnings: list[Text] = field(default_factory=list)
    answers: dict[str, QuestionAnswer] = field(default_factory=dict)
    heard: Text = ""

    @property
    def is_cut(self) -> bool:
        """Return whether the token limit ended it, and no person reviewed it."""
        return self.ended == "length" and not self.review

    def named(self, text: str) -> str:
        """Return a text after the name of the prompt, if there is one."""
        return f"{self.name}: {text}" if self.name else text


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureRow:
    """A failed item. Fields are those of `Failure`."""

    media_path: Text = ""
    source: Text = ""
    stage: Text = ""
    error: Text = ""
    message: Text = ""
    hint: Text = ""

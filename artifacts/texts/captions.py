"""The captions and failures of a run: their values, their JSON lines, and caption files.

The module finds the answer in what a model generated, which is the text behind its reasoning. It
writes the captions of each medium as one file of plain text, WebVTT or SubRip.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from artifacts.disk.files import encoded, write_text
from artifacts.disk.json_shapes import Json
from artifacts.disk.names import TEXT_FORMATS
from artifacts.schema import values_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Ended = Literal["stop", "length"]
"""How a caption ended: by itself, or cut at its token limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One line of `captions.jsonl`: the caption of one chunk."""

    media_path: str
    """Path relative to the given folder, or the file's name; POSIX."""
    source: str
    """The command-line argument that included the file."""
    start: float
    """Seconds of the medium's own time; 0 for an image."""
    end: float
    """Seconds of the medium's own time; 0 for an image."""
    caption: str
    """The text as it is written everywhere, with trigger, prefix and suffix."""
    model: str
    """The model as it was given: a folder, a hub id or `demo`."""
    prompt: str
    """The prompt as it was sent, placeholders filled in."""
    precision: dict[str, str]
    """Precision of each half: `vision` and `language`, and `audio` if the model got sound."""
    frames: tuple[float, ...]
    """Times in seconds of the frames that the model got."""
    features: str
    """Key of the stored features of its frames."""
    tokens: int
    """Number of generated tokens."""
    ended: Ended
    """How the caption ended."""
    logprob: float | None = None
    """Mean log-probability of its tokens by raw logits, end token included; None: unknown, as for
    a correction without a score."""
    margin: float | None = None
    """Least margin of a token: its raw logit minus the largest of any other token."""
    margin_at: int | None = None
    """Where the token with the least margin begins: characters of the text without additions."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the file, damage of its frames, and events of the caption."""
    name: str = ""
    """Name of its prompt, if there are several."""
    fields: dict[str, Json] | None = None
    """Values by property, if it follows a schema."""
    original: str = ""
    """The model's caption, if a user corrected it."""
    review: str = ""
    """Whether a user accepted or rejected it; empty: not reviewed."""
    answers: dict[str, dict[str, Any]] | None = None
    """Name of a question → its answer about the chunk, without the probabilities of all labels."""
    timecode: str = ""
    """Timecode of its start, where the file has one: `01:00:00;00` in drop frame."""
    recorded: str = ""
    """When it was recorded, ISO 8601, where the file says so."""
    heard: str = ""
    """Key of the stored features of its sound; empty: the model got no sound."""
    weights: str = ""
    """Digest of the model's files when it made the caption; empty: a server's model."""
    commit: str = ""
    """The hub's commit of the model then; empty: no model of a hub."""
    penstock: str = ""
    """Version of Penstock that made the caption."""

    OMIT_IF_EMPTY: ClassVar = (
        *("name", "fields", "answers", "original", "review", "heard"),
        *("weights", "commit", "penstock", "timecode", "recorded"),
    )
    """Fields that are left out of a line when empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One line of `failures.jsonl`: an item that failed, why, and what to do."""

    media_path: str
    """Path relative to the given folder, or the file's name; POSIX."""
    source: str
    """The command-line argument that included the file."""
    stage: str
    """The stage that failed: `sources` or a stage's name."""
    error: str
    """A stable identifier for programs, such as `missing` or `no-video`."""
    message: str
    """What failed, in one line."""
    hint: str
    """What to do about it; empty: nothing is known."""


CONFIDENCE = ("logprob", "margin", "margin_at")
"""Fields that say how sure the model was."""


def write_jsonl(path: Path, rows: Iterable["DataclassInstance"]) -> None:
    """Write one JSON object per line, atomically. Raises EnvironmentFault."""
    write_text(path, json_lines(rows))


def json_lines(rows: Iterable["DataclassInstance"]) -> Iterator[str]:
    """Yield the line of each row."""
    return (encoded(fields_of_row(row)) + "\n" for row in rows)


def fields_of_row(row: "DataclassInstance") -> dict[str, Json]:
    """Return the fields of a row by name, without the optional ones that are empty."""
    optional = getattr(row, "OMIT_IF_EMPTY", ())
    return {name: value for name, value in values_of(row).items() if value or name not in optional}


TAGS = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",  # Mistral
    "<|channel>": "<channel|>",  # Gemma 4
    "◁think▷": "◁/think▷",  # Kimi-VL
    "<|START_THINKING|>": "<|END_THINKING|>",  # Cohere
}
"""Opening tag → closing tag, as chat templates of supported families write them."""


def has_tags(text: str) -> bool:
    """Return whether a text holds a tag of reasoning."""
    return any(tag in text for pair in TAGS.items() for tag in pair)


def ends_inside(text: str) -> str:
    """Return the opening tag that a text does not close; empty if it closes all."""
    inside = (tag for tag in TAGS if text.rfind(tag) > text.rfind(TAGS[tag]))
    return next(inside, "")


def behind_reasoning(prompt: str, answer: str) -> str:
    """Return an answer as it follows a prompt: behind an empty reasoning if the prompt ends inside
    of an open tag, and the answer does not close it itself."""
    closing = TAGS.get(ends_inside(prompt), "")
    return f"\n{closing}\n\n{answer}" if closing and closing not in answer else answer


def answer_in(text: str, *, opened: bool = False) -> str | None:
    """Return a model's answer without its reasoning; None if the reasoning never ended. `opened`:
    the prompt ended inside of an open tag."""
    ends = [(text.rfind(closing), closing) for closing in TAGS.values()]
    at, closing = max(ends)
    if at >= 0:
        return text[at + len(closing) :].strip()
    return None if opened or text.lstrip().startswith((*TAGS,)) else text.strip()


def answer_of(stored: Mapping[str, Any], *, opened: bool) -> str | None:
    """Return the answer in the record of a caption; None if the reasoning never ended. `opened`:
    the model's prompts end inside of an open tag. A record that states this itself counts more."""
    text, at = str(stored["caption"]), stored.get("answer_at")
    if at is not None:
        return answer_in(text[at:])
    return answer_in(text, opened=stored.get("opened", opened))


def text_lines(captions: Sequence[Caption]) -> Iterator[str]:
    """Yield one line per chunk; line breaks inside a caption become spaces."""
    yield from (f"{one_line(caption.caption)}\n" for caption in captions)


class TimedCaption(Protocol):
    """A text about a span of a medium."""

    @property
    def start(self) -> float: ...

    @property
    def end(self) -> float: ...

    @property
    def caption(self) -> str: ...


class Cue(NamedTuple):
    """A text about a span of a medium, in seconds."""

    start: float
    end: float
    caption: str


def vtt_lines(captions: Sequence[TimedCaption]) -> Iterator[str]:
    """Yield a WebVTT track with a cue for each chunk with a caption; nothing without chunks.

    Source: W3C WebVTT, section 4.1: `&`, `<` and so `-->` must be escaped.
    """
    if captions:
        yield "WEBVTT\n"
    for start, end, text in _cues(captions):
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"\n{cue_time(start)} --> {cue_time(end)}\n{text}\n"


def srt_lines(captions: Sequence[Caption]) -> Iterator[str]:
    """Yield a SubRip file with a cue for each chunk with a caption.

    The format has no escapes. Only the arrow, which readers parse as a time, is replaced.
    """
    for number, (start, end, text) in enumerate(_cues(captions), 1):
        gap = "\n" if number > 1 else ""
        text = text.replace("-->", "→")
        yield f"{gap}{number}\n{cue_time(start, ',')} --> {cue_time(end, ',')}\n{text}\n"


def cue_time(milliseconds: int, point: str = ".") -> str:
    """Return a time as `hh:mm:ss.mmm`; hours grow beyond two digits."""
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{point}{milliseconds:03d}"


def _cues(captions: Sequence[TimedCaption]) -> Iterator[tuple[int, int, str]]:
    """Yield start and end in milliseconds, which always differ, and the text, which is never
    empty."""
    for caption in captions:
        text = one_line(caption.caption)
        if text:
            start = round(caption.start * 1000)
            yield start, max(round(caption.end * 1000), start + 1), text


def one_line(text: str) -> str:
    """Return a text on one line: line breaks and runs of spaces become one space."""
    return " ".join(text.split()).replace("\0", "\N{REPLACEMENT CHARACTER}")


WRITERS = dict(zip(TEXT_FORMATS, (text_lines, vtt_lines, srt_lines), strict=True))
"""Format with one file per medium → its writer."""

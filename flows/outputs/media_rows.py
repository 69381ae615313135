"""Lists each medium of a run with its captions, read from the run's JSON lines."""

import itertools
import operator
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, NotRequired, Protocol, TypedDict, TypeVar
from urllib.parse import quote

from artifacts.disk.json_records import read_jsonl_file
from artifacts.disk.json_shapes import Json
from artifacts.disk.json_types import Count, Number, Text
from artifacts.disk.stamps import stamp_of
from artifacts.records.keys import content_key, hash_file
from artifacts.wording import counted
from flows.core.media.media_file import kind_of, writable
from flows.core.media.output_rows import CaptionRow, FailureRow, MediaRow

RUN_AGAIN = "Run the same `penstock caption` again, which rewrites it"
MOST_WARNINGS = 10
"""Warnings that the page shows of one file."""
AWAY, OTHER = "The file is not where it was", "The file holds other content than was captioned"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChapterRow:
    """A chapter of a summary."""

    start: Number
    end: Number
    text: Text


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownSummary:
    """A line of `summaries.jsonl`, as far as a page shows it."""

    media_path: Text
    source: Text
    summary: Text
    chapters: list[ChapterRow]
    tokens: Count = 0
    warnings: list[Text] = field(default_factory=list)


class PageCaption(NamedTuple):
    """A caption, or a stretch with its labels, as a report gets it."""

    start: float
    end: float
    text: str
    tokens: int = 0
    is_cut: bool = False
    decided: Sequence[str] = ()
    """What a person did with it: nothing, or one or two words."""


CaptionT = TypeVar("CaptionT")


class PageMedium(TypedDict, Generic[CaptionT]):
    """A medium as a page gets it."""

    name: str
    kind: str
    path: str
    url: str | None
    """Relative to the folder of the page; None: unknown."""
    gone: str
    """Why it cannot be shown; empty: it can."""
    prompt: str
    warnings: list[str]
    captions: list[CaptionT]
    summary: NotRequired[Json]
    small: NotRequired[str]
    """Address of a thumbnail with its data."""
    labels: NotRequired[Json]
    spans: NotRequired[Json]
    """Stretches of a video with their labels."""
    number: NotRequired[int]
    """Its number in a review."""
    text: NotRequired[tuple[str, str]]
    """Name and content of a text beside it that a person wrote."""


def captioned_media(
    out: Path, folder: Path, summaries: Sequence[ShownSummary] = ()
) -> tuple[list[PageMedium[PageCaption]], Counter[str]]:
    """Return the media of a run into `out`, in source order, for a page in `folder`, and how many
    captions are corrected, accepted and rejected. `summaries`: rows of `summaries.jsonl`.

    A summarized one has `summary`: its `text`, the (start, text) of each of its `chapters`, and
    `warnings`. Raises EnvironmentFault.
    """
    media, edited = list[PageMedium[PageCaption]](), Counter[str]()
    rows_of = {_name(row): row for row in summaries}
    for entry, rows in media_with_captions(out):
        edited["corrected"] += sum(bool(row.original) for row in rows)
        edited.update(row.review for row in rows if row.review)
        media.append(_medium(entry, rows, folder))
        if summary := rows_of.get(entry.name):
            media[-1]["summary"] = {
                "text": summary.summary,
                "chapters": [(chapter.start, chapter.text) for chapter in summary.chapters],
                "warnings": summary.warnings,
            }
    return media, edited


def media_with_captions(out: Path) -> Iterator[tuple[MediaRow, list[CaptionRow]]]:
    """Return an iterator over the rows of `media.jsonl` with their captions. Raises
    EnvironmentFault."""
    return media_with_lines(
        read_jsonl_file(MediaRow, out / "media.jsonl", RUN_AGAIN),
        read_jsonl_file(CaptionRow, out / "captions.jsonl", RUN_AGAIN),
    )


def failed_media(out: Path) -> list[FailureRow]:
    """Return the failures in `failures.jsonl`. Raises EnvironmentFault."""
    return read_jsonl_file(FailureRow, out / "failures.jsonl", RUN_AGAIN)


class OfMedium(Protocol):
    """A row about a medium."""

    @property
    def media_path(self) -> str: ...
    @property
    def source(self) -> str: ...


RowT = TypeVar("RowT", bound=OfMedium)


def _name(row: OfMedium) -> tuple[str, str]:
    return row.source, row.media_path


def media_with_lines(
    entries: Sequence[MediaRow], lines: Sequence[RowT]
) -> Iterator[tuple[MediaRow, list[RowT]]]:
    """Yield each row of `media.jsonl` with its captions or labels."""
    counts = [entry.captions for entry in entries]
    named = itertools.chain.from_iterable([entry.name] * entry.captions for entry in entries)
    if sum(counts) == len(lines) and all(map(operator.eq, named, map(_name, lines))):
        rows = iter(lines)
        for entry, count in zip(entries, counts, strict=True):
            yield entry, list(itertools.islice(rows, count))
        return
    # A running command may be writing media.jsonl now.
    entry_by_name = {entry.name: entry for entry in entries}
    for name, group in itertools.groupby(lines, _name):
        rows_of = list(group)
        source, path = name
        yield (
            entry_by_name.get(name)
            or MediaRow(
                media_path=path, source=source, kind=kind_of(path), url="", captions=len(rows_of)
            ),
            rows_of,
        )


def is_other(entry: MediaRow, *, reads: bool = True) -> bool:
    """Return whether the place of a medium holds other content than the command read there. A file
    of the same size that was written since is read, if `reads`."""
    path, size = Path(entry.path), entry.bytes
    try:
        stamp = stamp_of(path)
        if size is None or (stamp.size, stamp.modified) == (size, entry.modified):
            return False
        if stamp.size != size or not reads:
            return stamp.size != size
        return content_key(hash_file(path), entry.kind) != entry.content
    except OSError:
        return False


def shown_medium(entry: MediaRow, folder: Path, *, reads: bool = True) -> PageMedium[Any]:
    """Return the page's entry of a medium, without captions. `reads` is as in `is_other`."""
    path = entry.path
    url = quote(os.fsencode(os.path.relpath(path, folder))) if path else None
    return {
        "name": entry.media_path,
        "kind": entry.kind,
        "path": entry.address or writable(path) or entry.source,
        "url": url,
        "gone": AWAY
        if not path or not os.path.isfile(path)
        else OTHER * is_other(entry, reads=reads),
        "prompt": "",
        "warnings": [],
        "captions": [],
    }


def _caption(row: CaptionRow) -> PageCaption:
    return PageCaption(
        *(row.start, row.end, row.named(row.caption), row.tokens, row.is_cut),
        decided=[*(["corrected"] if row.original else []), *filter(None, [row.review])],
    )


def _medium(entry: MediaRow, rows: list[CaptionRow], folder: Path) -> PageMedium[PageCaption]:
    warnings = list(dict.fromkeys(text for row in rows for text in row.warnings))
    if (more := len(warnings) - MOST_WARNINGS) > 0:
        warnings[MOST_WARNINGS:] = [f"{more} more in captions.jsonl"]
    if cut := sum(row.is_cut for row in rows):
        warnings.append(f"{counted(cut, 'caption')} cut at the limit: raise --max-new-tokens")
    return {
        **shown_medium(entry, folder),
        "prompt": " · ".join(dict.fromkeys(row.named(row.prompt) for row in rows)),
        "warnings": warnings,
        "captions": [*map(_caption, rows)],
    }

"""Lists each medium of a run with its captions, read from the run's JSON lines, and embeds
thumbnails.
"""

import itertools
import operator
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from artifacts.disk.json_shapes import (
    Nullable,
    OptionalField,
    count,
    number,
    read_jsonl,
    string,
    text,
)
from artifacts.disk.stamps import stamp_of
from artifacts.records.keys import content_key, hash_file
from artifacts.texts.captions import CONFIDENCE, Failure
from artifacts.wording import counted
from flows.core.media.media_file import kind_of, writable
from flows.outputs.thumbnails import data_address
from stages.process.host_memory import cores

FILE = "file://"
RUN_AGAIN = "Run the same `penstock caption` again, which rewrites it"
NAME = {"media_path": text, "source": text}
MEDIA_ENTRY = {
    **NAME,
    "kind": text,
    "url": text,
    "captions": count,
    "address": OptionalField(text),
    "content": OptionalField(text),
    "bytes": OptionalField(count),
    "modified": OptionalField(count),
}
MOST_WARNINGS = 10
"""Warnings that the page shows of one file."""
AWAY, OTHER = "The file is not where it was", "The file holds other content than was captioned"
CAPTION = {
    **NAME,
    "start": number,
    "end": number,
    "caption": text,
    "prompt": OptionalField(text),
    "tokens": OptionalField(count),
    "ended": OptionalField(text),
    "logprob": OptionalField(Nullable(number)),
    "margin": OptionalField(Nullable(number)),
    "margin_at": OptionalField(Nullable(count)),
    "name": OptionalField(text),
    "review": OptionalField(text),
    "warnings": OptionalField([text]),
}
EDITED = {**CAPTION, "original": OptionalField(string)}
SUMMARY = {
    **NAME,
    "summary": text,
    "chapters": [{"start": number, "end": number, "text": text}],
    "tokens": OptionalField(count),
    "warnings": OptionalField([text]),
}
FAILURE = dict.fromkeys(Failure.__slots__, OptionalField(text))


def captioned_media(
    out: Path, folder: Path, summaries: Sequence[dict[str, Any]] = ()
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the media of a run into `out`, in source order, for a page in `folder`, and how many
    captions are corrected, accepted and rejected. `summaries`: rows of `summaries.jsonl`.

    Each has `name`, `kind`, `url` relative to the folder (None: unknown), `gone`, `prompt` and
    `captions`. A caption is (start, end, text, tokens, whether it was cut, the fields of
    CONFIDENCE, what a person did with it). A summarized one has `summary`: its `text`, the (start,
    text) of each of its `chapters`, and `warnings`. Raises EnvironmentFault.
    """
    media, edited = list[dict[str, Any]](), Counter[str]()
    rows_of = {_name(row): row for row in summaries}
    for entry, rows in media_with_captions(out, EDITED):
        edited["corrected"] += sum("original" in row for row in rows)
        edited.update(row["review"] for row in rows if row.get("review"))
        media.append(_medium(entry, rows, folder))
        if row := rows_of.get(_name(entry)):
            media[-1]["summary"] = {
                "text": row["summary"],
                "chapters": [(chapter["start"], chapter["text"]) for chapter in row["chapters"]],
                "warnings": row.get("warnings", []),
            }
    return media, edited


EMBEDDED_BYTES = 20_000_000
"""Most characters of all thumbnails in a page. Media that come later have links only."""
SIDE = 240
"""Pixels of the longer side of a thumbnail."""
TOGETHER = 64
"""Thumbnails that are made between two looks at the limit."""


def embed_thumbnails(media: list[dict[str, Any]], folder: Path) -> None:
    """Add `small`, the address of a thumbnail with its data, to the first media of a page in
    `folder`: of a video, the middle of its first caption."""

    def small(medium: dict[str, Any]) -> str:
        (start, end, *_), *_ = medium["captions"] or [(0.0, 0.0)]
        middle = None if medium["kind"] == "image" else (start + max(start, end)) / 2
        return data_address(folder / os.fsdecode(unquote_to_bytes(medium["url"])), middle, SIDE)

    left, here = EMBEDDED_BYTES, [medium for medium in media if not medium["gone"]]
    with ThreadPoolExecutor(cores()) as pool:
        for at in range(0, len(here), TOGETHER):
            if left <= 0:
                break
            some = here[at : at + TOGETHER]
            for medium, address in zip(some, pool.map(small, some), strict=True):
                left -= len(address)
                medium["small"] = address if left >= 0 else ""


def media_with_captions(
    out: Path, shape: dict[str, Any] = CAPTION
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return an iterator over the entries of `media.jsonl` with their captions, whose lines have
    this shape. Raises EnvironmentFault."""
    return media_with_lines(
        read_jsonl(out / "media.jsonl", MEDIA_ENTRY, RUN_AGAIN),
        read_jsonl(out / "captions.jsonl", shape, RUN_AGAIN),
    )


def failed_media(out: Path) -> list[dict[str, Any]]:
    """Return the failures in `failures.jsonl`. Raises EnvironmentFault."""
    rows = read_jsonl(out / "failures.jsonl", FAILURE, RUN_AGAIN)
    return [{**dict.fromkeys(Failure.__slots__, ""), **row} for row in rows]


def _name(row: dict[str, Any]) -> tuple[str, str]:
    return row["source"], row["media_path"]


def media_with_lines(
    entries: list[dict[str, Any]], lines: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield each entry of `media.jsonl` with its captions or labels."""
    counts = [entry["captions"] for entry in entries]
    named = itertools.chain.from_iterable([_name(p)] * p["captions"] for p in entries)
    if sum(counts) == len(lines) and all(map(operator.eq, named, map(_name, lines))):
        rows = iter(lines)
        for entry, count in zip(entries, counts, strict=True):
            yield entry, list(itertools.islice(rows, count))
        return
    # A running command may be writing media.jsonl now.
    known = {_name(entry): entry for entry in entries}
    for name, group in itertools.groupby(lines, _name):
        rows_of = list(group)
        source, path = name
        without_place = {"media_path": path, "source": source, "kind": kind_of(path), "url": ""}
        yield known.get(name) or without_place, rows_of


def path_of(entry: Mapping[str, Any]) -> str:
    """Return the path of a medium; empty if unknown."""
    return os.fsdecode(unquote_to_bytes(entry["url"].removeprefix(FILE)))


def is_other(entry: Mapping[str, Any], *, reads: bool = True) -> bool:
    """Return whether the place of a medium holds other content than the command read there. A file
    of the same size that was written since is read, if `reads`."""
    path, size = Path(path_of(entry)), entry.get("bytes")
    try:
        stamp = stamp_of(path)
        if size is None or (stamp.size, stamp.modified) == (size, entry.get("modified")):
            return False
        if stamp.size != size or not reads:
            return bool(stamp.size != size)
        return content_key(hash_file(path), entry["kind"]) != str(entry.get("content"))
    except OSError:
        return False


def shown_medium(entry: dict[str, Any], folder: Path, *, reads: bool = True) -> dict[str, Any]:
    """Return the page's entry of a medium, without captions. `reads` is as in `is_other`."""
    path = path_of(entry)
    url = quote(os.fsencode(os.path.relpath(path, folder))) if path else None
    return {
        "name": entry["media_path"],
        "kind": entry["kind"],
        "path": entry.get("address") or writable(path) or entry["source"],
        "url": url,
        "gone": AWAY
        if not path or not os.path.isfile(path)
        else OTHER * is_other(entry, reads=reads),
        "prompt": "",
        "warnings": [],
        "captions": [],
    }


def _named(row: dict[str, Any], text: str) -> str:
    """Return a text prefixed with its prompt name, if there is one."""
    return f"{row['name']}: {text}" if row.get("name") else text


def _decided(row: dict[str, Any]) -> list[str]:
    """Return what a person did with a caption: nothing, or one or two words."""
    return [*(["corrected"] if "original" in row else []), *filter(None, [row.get("review")])]


def _cut(row: dict[str, Any]) -> bool:
    return row.get("ended") == "length" and not row.get("review")


def _medium(entry: dict[str, Any], rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    warnings = list(dict.fromkeys(text for row in rows for text in row.get("warnings", ())))
    if (more := len(warnings) - MOST_WARNINGS) > 0:
        warnings[MOST_WARNINGS:] = [f"{more} more in captions.jsonl"]
    if cut := sum(map(_cut, rows)):
        warnings.append(f"{counted(cut, 'caption')} cut at the limit: raise --max-new-tokens")
    return {
        **shown_medium(entry, folder),
        "prompt": " · ".join(dict.fromkeys(_named(row, row.get("prompt", "")) for row in rows)),
        "warnings": warnings,
        "captions": [
            [
                *(row["start"], row["end"], _named(row, row["caption"])),
                *(row.get("tokens", 0), _cut(row), *map(row.get, CONFIDENCE), _decided(row)),
            ]
            for row in rows
        ],
    }

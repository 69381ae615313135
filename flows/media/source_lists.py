"""Parses list files: paths of media and their prompts. Searches no folder."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from artifacts.regular_files import read_bytes, user_text
from artifacts.remote.addresses import is_address
from flows.options.text import check_prompts

LIST_BYTES = 1 << 28
"""Largest list in bytes; about a million lines."""
ENTRY_HINT = 'Write {"path": "clip.mp4"}, or {"path": "clip.mp4", "prompt": "What …?"}'
FILES_ONLY = "Name media files and folders only"
LIST_HINT = "A list holds one path per line, or is JSON or a .csv with a column `path`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """The path and the prompt of one line."""

    name: str
    """Path relative to the list's folder, or an address."""
    prompt: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Name → prompt, if the line has several."""
    media_path: str = ""
    """Its name in the outputs; empty: not stated."""
    source: str = ""
    """The argument that named it in an earlier run; empty: not stated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadLine:
    """A line without a path, or a list that cannot be read."""

    name: str
    message: str
    hint: str


def lines_of(path: Path) -> Iterator[Line | BadLine]:
    """Yield one source per line of a `.txt`, per object of a `.jsonl` or `.json`, or per row of a
    `.csv` or `.tsv`: its `path`, with its `prompt` if given. A list inside a list is an error,
    since it might be the same list."""
    entries_in = STRUCTURED.get(path.suffix.lower(), _text_lines)
    try:
        entries = [*entries_in(user_text(read_bytes(path, LIST_BYTES), path))]
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error}"
        message = f"the list cannot be read: {reason}"
        yield BadLine(name=str(path), message=message, hint=LIST_HINT)
        return
    for place, value in entries:
        try:
            parsed = _entry(value) if entries_in is not _text_lines else Line(name=value)
        except ValueError as error:
            yield BadLine(name=str(path), message=f"{place} of the list {error}", hint=ENTRY_HINT)
            continue
        entry = parsed.name
        if is_address(entry):
            yield parsed
            continue
        named = path.parent / entry
        if named.suffix.lower() in LIST_SUFFIXES or (
            entry.startswith("@") and not os.path.lexists(named)
        ):
            yield BadLine(name=entry, message=f"{place} names another list", hint=FILES_ONLY)
            continue
        yield replace(parsed, name=str(named))


def _text_lines(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the place of each entry in a list, and the entry."""
    # splitlines would also split at unusual line separators inside a name or a prompt.
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            yield f"line {number}", entry


def _json_lines(text: str) -> Iterator[tuple[str, Any]]:
    for place, line in _text_lines(text):
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError):
            yield place, None


def _json_array(text: str) -> Iterator[tuple[str, Any]]:
    found = json.loads(text)
    for number, value in enumerate(found if isinstance(found, list) else [found], 1):
        yield f"entry {number}", {"path": value} if isinstance(value, str) else value


def _table_rows(text: str) -> Iterator[tuple[str, Any]]:
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = [name.strip().lower() for name in next(rows, [])]
    if "path" not in names:
        raise ValueError("its first line names no column `path`")
    for row in filter(None, rows):
        filled = (pair for pair in zip(names, row, strict=False) if pair[1].strip())
        yield f"line {rows.line_num}", {**dict(filled), "prompts": None}


STRUCTURED = {".jsonl": _json_lines, ".json": _json_array, ".csv": _table_rows, ".tsv": _table_rows}
"""Suffix of a list → function that yields its entries."""
LIST_SUFFIXES = frozenset((".txt", *STRUCTURED))


def _entry(value: object) -> Line:
    """Parse the fields of a line. Raises ValueError with the cause."""
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(path, str) or not path:
        raise ValueError("names no path")
    prompt = value.get("prompt")
    if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
        raise ValueError("has a prompt that is empty or no text")
    prompts = value.get("prompts") or {}
    if not isinstance(prompts, dict) or (prompts and prompt is not None):
        raise ValueError("has prompts that are no object, or both prompt and prompts")
    try:
        check_prompts(prompts)
        names = {n: value[n] for n in ("media_path", "source") if isinstance(value.get(n), str)}
        os.fsencode(path), "".join([prompt or "", *prompts.values(), *names.values()]).encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair") from error
    except UsageError as error:
        raise ValueError(f"is invalid ({error.message})") from error
    return Line(name=path, prompt=prompt, prompts=prompts, **names)

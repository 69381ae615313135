"""Parses list files: paths of media and their prompts. Searches no folder."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.regular_files import read_text
from artifacts.remote.addresses import is_address
from flows.options.text import check_prompts

LIST_SUFFIXES = frozenset((".txt", ".jsonl"))
LIST_BYTES = 1 << 28
"""Largest list in bytes; about a million lines."""
ENTRY_HINT = 'Write {"path": "clip.mp4"}, or {"path": "clip.mp4", "prompt": "What …?"}'
FILES_ONLY = "Name media files and folders only"


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
    """Yield one source per line. In a `.jsonl` list it is the `path` of each object, with its
    `prompt` if given. A list inside a list is an error, since it might be the same list."""
    try:
        # splitlines would also split at unusual line separators inside a name or a prompt.
        lines = read_text(path, LIST_BYTES, "utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name holds a null character"
        message = f"the list cannot be read: {reason}"
        yield BadLine(name=str(path), message=message, hint="A list holds one path per line")
        return
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        parsed = Line(name=entry)
        if path.suffix.lower() == ".jsonl":
            try:
                parsed = _entry(entry)
            except ValueError as error:
                message = f"line {number} of the list {error}"
                yield BadLine(name=str(path), message=message, hint=ENTRY_HINT)
                continue
        entry = parsed.name
        if is_address(entry):
            yield parsed
            continue
        named = path.parent / entry
        if named.suffix.lower() in LIST_SUFFIXES or (
            entry.startswith("@") and not os.path.lexists(named)
        ):
            yield BadLine(name=entry, message=f"line {number} names another list", hint=FILES_ONLY)
            continue
        yield replace(parsed, name=str(named))


def _entry(line: str) -> Line:
    """Parse a line of JSON. Raises ValueError with the cause."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or not path:
        raise ValueError("is no JSON object with a path")
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

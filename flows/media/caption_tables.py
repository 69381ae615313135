"""Reads the rows of tables of captions: JSON lines, CSV and Parquet. Opens no media."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from artifacts.regular_files import read_bytes, user_text

Row = Mapping[str, Any]
MAX_BYTES = 1 << 30
"""Largest caption file, in bytes."""
TEXTS = ("caption", "text")
"""Fields that hold the caption."""


def text_of(path: Path) -> str:
    """Return the text of a user's file. Raises UsageError."""
    try:
        return user_text(read_bytes(path, MAX_BYTES), path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path} cannot be read ({reason})", hint="Check the file") from error


def _of_jsonl(path: Path) -> Iterator[Row]:
    for at, line in enumerate(text_of(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UsageError(
                f"{path}: line {at} is no JSON object", hint="Write one object per line"
            )
        yield row


def _of_csv(path: Path) -> Iterator[Row]:
    # splitlines would also split at unusual line separators inside a caption.
    for row in csv.DictReader(io.StringIO(text_of(path), newline="")):
        yield from _of_prompts(row)


def _of_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow.parquet import read_table

    try:
        for row in read_table(path).to_pylist():
            yield from _of_prompts(row)
    except (OSError, pa.ArrowException) as error:
        message = " ".join(str(error).split())[:160]
        raise UsageError(f"{path} cannot be read ({message})", hint="Write it again") from error


def _of_prompts(row: Row) -> Iterator[Row]:
    """Yield a row for each caption of a chunk: tables have the named prompts side by side."""
    ending = "_prompt"
    names = [column.removesuffix(ending) for column in row if str(column).endswith(ending)]
    if not names or ("caption" not in names and any(name in row for name in TEXTS)):
        yield row
        return
    for name in names:
        caption, prompt = row.get(f"caption_{name}", row.get(name)), row[f"{name}{ending}"]
        if prompt:  # empty where this chunk has no such prompt
            ended = row.get(f"{name}_ended")
            yield {**row, "name": name, "prompt": prompt, "caption": caption, "ended": ended}


ROWS = {".jsonl": _of_jsonl, ".csv": _of_csv, ".parquet": _of_parquet}
"""Suffix → function that reads the rows of a file."""

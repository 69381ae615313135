"""Writes rows as a csv or parquet table in source order, and reads csv tables of users.

Both formats hold the fields of a JSON line, such as those of `captions.jsonl`, under their own
names and nothing else.
"""

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, zip_longest
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias, TypeVar

from artifacts.disk.files import finite, whole_file
from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.schema import values_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pyarrow import Schema, Table
    from pyarrow.parquet import ParquetWriter

T = TypeVar("T")
Row: TypeAlias = "DataclassInstance | Mapping[str, Json]"

KINDS = {
    "media_path": "text",
    "source": "text",
    "start": "number",
    "end": "number",
    "caption": "text",
    "model": "text",
    "prompt": "text",
    "precision": "precision",
    "frames": "numbers",
    "features": "text",
    "tokens": "count",
    "ended": "text",
    "logprob": "number",
    "margin": "number",
    "margin_at": "count",
    "warnings": "texts",
}
"""Column → type, for the captions of one prompt."""
UNSTORED = re.compile("[\0\udc80-\udcff]")
"""What a text in a table cannot hold, and the mark that replaces it: see `stored_text`."""
STORED = re.compile("\0([0-9a-f]{2})")
GROUP_ROWS = 10_000
"""Rows of a row group, which readers and the writer hold in memory at once."""


def write_csv(path: Path, rows: Iterable["Row"], kinds: Mapping[str, str] = KINDS) -> None:
    """Write RFC 4180 in UTF-8, with the columns of `kinds`; lists and mappings are JSON text.
    Raises EnvironmentFault.

    A cell that begins with `=` is written as it is: this is data to be read back, and a mark that
    keeps a spreadsheet from calculating it would stay in the text for everyone else.
    """
    with whole_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
        writer = csv.writer(text)
        writer.writerow(kinds)
        for row in rows:
            values = _values(row)
            writer.writerow([_cell(values[name]) for name in kinds])
        text.detach()


LONG_HINT = "Shorten the cell, or close its quote: it may hold all lines after it"
CSV_HINT = 'Quote a cell that holds a comma or a quote: "red, green", "a ""red"" disk"'


def read_csv(
    text: str, place: str, delimiter: str = ",", refused: list[UsageError] | None = None
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the names of the columns (unnamed ones at the end are none), and the line and the
    cells of each row that is not blank. A row with more cells has a comma that is not quoted, and
    would be cut: it goes to `refused`, or raises UsageError. `place`: what the text is."""
    # splitlines would also split at unusual line separators inside a cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names, rows = list[str](), list[tuple[int, dict[str, str]]]()
    while True:
        line = reader.line_num + 1
        try:
            if (row := next(reader, None)) is None:
                return names, rows
            while row and not row[-1].strip():
                row.pop()
            if names and (surplus := ",".join(row[len(names) :])):
                raise csv.Error(f"more cells than columns ({surplus.strip()[:80]!r} is in none)")
        except csv.Error as error:
            hint = LONG_HINT if "field larger" in str(error) else CSV_HINT
            bad = UsageError(f"{place}: line {line} cannot be read: {error}", hint=hint)
            if refused is None:
                raise bad from error
            refused.append(bad)
            continue
        if names and row:
            rows.append((line, dict(zip_longest(names, row, fillvalue=""))))
        elif twice := [name for at, name in enumerate(row) if name.strip() and name in row[:at]]:
            raise UsageError(f"{place}: two columns are named {twice[0]!r}", hint="Rename one")
        names = names or row


def _values(row: "Row") -> dict[str, Json]:
    """Return the values of a row by column; it is a dataclass or a mapping. NaN becomes None."""
    values = row if isinstance(row, Mapping) else values_of(row)
    return {name: finite(value) for name, value in values.items()}


def _cell(value: Json) -> str | float:
    if value is None:
        return ""
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def write_parquet(path: Path, rows: Iterable["Row"], kinds: Mapping[str, str] = KINDS) -> None:
    """Write columns of these types. Raises EnvironmentFault."""
    left = iter(rows)
    with whole_file(path) as file, parquet_writer(file, schema_of(kinds)) as writer:
        while group := list(islice(left, GROUP_ROWS)):
            writer.write_table(table_of(group, kinds))


@contextlib.contextmanager
def parquet_writer(
    file: IO[bytes], schema: "Schema", compression: str = "snappy"
) -> Iterator["ParquetWriter"]:
    """Open a parquet file for writing. Its end is written if the block succeeds."""
    from pyarrow.parquet import ParquetWriter

    writer = ParquetWriter(file, schema, compression=compression)
    try:
        yield writer
        writer.close()
    finally:
        writer.is_open = False  # deleting it would try the end again, and print that it fails


def table_of(rows: Iterable["Row"], kinds: Mapping[str, str]) -> "Table":
    """Return the same columns as a pyarrow table in memory."""
    import pyarrow as pa

    values = [{k: utf8(v) for k, v in _values(row).items()} for row in rows]
    return pa.Table.from_pylist(values, schema_of(kinds))


def schema_of(kinds: Mapping[str, str]) -> "Schema":
    """Return the schema for columns of these types."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    label = {"label": text, "score": number, "passed": pa.bool_(), "whole": number}
    label |= {"box": pa.list_(pa.int64()), "threshold": number, "why": text}
    types = {
        "text": text,
        "number": number,
        "count": pa.int64(),
        "truth": pa.bool_(),
        "texts": pa.list_(text),
        "numbers": pa.list_(number),
        "labels": pa.list_(pa.struct([*label.items()])),
        "precision": pa.struct([("vision", text), ("language", text)]),
        "precision with audio": pa.struct([(n, text) for n in ("vision", "audio", "language")]),
    }
    return pa.schema([(name, types[kind]) for name, kind in kinds.items()])


def stored_text(value: T) -> T | str:
    """Return a text as a table keeps it that is read back: bytes of a path that are no UTF-8 are a
    NUL, which no path holds, and two hex digits each. `text_stored` undoes it."""
    if isinstance(value, str):
        return UNSTORED.sub(lambda match: f"\0{ord(match[0]) & 0xFF:02x}", value)
    return value


def text_stored(value: str) -> str:
    """Return the text that `stored_text` was given."""
    return STORED.sub(lambda match: os.fsdecode(bytes.fromhex(match[1])), value)


def utf8(value: Json) -> Json:
    """Return a text without what UTF-8 cannot encode, replaced as in the other formats."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    return value


TABLES = {"csv": write_csv, "parquet": write_parquet}
"""Suffix → writer of a format with one file for all captions."""

"""Writes rows as a csv or parquet table in source order, and reads csv tables of users.

Both formats hold the fields of a JSON line, such as those of `captions.jsonl`, under their own
names and nothing else.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from artifacts.captions import values_of
from artifacts.errors import UsageError
from artifacts.files import whole_file

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
COLUMNS = tuple(KINDS)
UNSTORED = re.compile("[\0\udc80-\udcff]")
"""What a text in a table cannot hold, and the mark that replaces it: see `stored_text`."""
STORED = re.compile("\0([0-9a-f]{2})")
GROUP_ROWS = 10_000
"""Rows of a row group, which readers and the writer hold in memory at once."""


def write_csv(path: Path, rows: Iterable[Any], columns: Sequence[str] = COLUMNS) -> None:
    """Write RFC 4180 in UTF-8; lists and mappings are JSON text. Raises EnvironmentFault.

    A cell that begins with `=` is written as it is: this is data to be read back, and a mark that
    keeps a spreadsheet from calculating it would stay in the text for everyone else.
    """
    with whole_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        for row in rows:
            values = _values(row)
            writer.writerow([_cell(values[name]) for name in columns])
        text.detach()


CSV_HINT = 'Quote a cell that holds a comma or a quote: "red, green", "a ""red"" disk"'
CsvRows = Iterator[tuple[int, list[str] | UsageError]]
"""The line where each row that is not blank begins, with a cell per column, or why the row is
refused: a text with a comma that is not quoted has more cells than columns, and would be cut."""


def read_csv(text: str, place: str, delimiter: str = ",") -> tuple[list[str], CsvRows]:
    """Return the names of the columns and the rows. Unnamed columns at the end are none. `place`:
    what the text is, for errors. Raises UsageError for the first row."""
    rows = _csv_rows(text, place, delimiter)
    names = next(rows, (0, list[str]()))[1]
    if isinstance(names, UsageError):
        raise names
    if twice := [name for at, name in enumerate(names) if name.strip() and name in names[:at]]:
        raise UsageError(f"{place}: two columns are named {twice[0]!r}", hint="Rename one")
    return names, rows


def _csv_rows(text: str, place: str, delimiter: str) -> CsvRows:
    # splitlines would also split at unusual line separators inside a cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = 0
    while True:
        line, why = reader.line_num + 1, ""
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # of this row: the reader goes on behind it
            row, why = [], f"cannot be read as CSV ({error})"
        while row and not row[-1].strip() and len(row) > columns:
            row.pop()
        columns = columns or len(row)
        if surplus := row[columns:]:
            why = f"has more cells than columns: {','.join(surplus).strip()[:80]!r} is in none"
        if why:
            yield line, UsageError(f"{place}: line {line} {why}", hint=CSV_HINT)
        elif any(cell.strip() for cell in row):
            yield line, row + [""] * (columns - len(row))


def _values(row: Any) -> Mapping[str, Any]:
    """Return the values of a row by column; it is a dataclass or a mapping."""
    return row if isinstance(row, Mapping) else values_of(row)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def write_parquet(path: Path, rows: Iterable[Any], schema: Any = None) -> None:
    """Write columns with fixed types. Raises EnvironmentFault."""
    from pyarrow.parquet import ParquetWriter

    left = iter(rows)
    schema = schema_of(KINDS) if schema is None else schema
    with whole_file(path) as file, ParquetWriter(file, schema) as writer:
        while group := list(islice(left, GROUP_ROWS)):
            writer.write_table(table_of(group, schema))


def table_of(rows: Iterable[Any], schema: Any = None) -> Any:
    """Return the same columns as a pyarrow table in memory."""
    import pyarrow as pa

    values = [{k: utf8(v) for k, v in _values(row).items()} for row in rows]
    return pa.Table.from_pylist(values, schema_of(KINDS) if schema is None else schema)


def schema_of(kinds: Mapping[str, str]) -> Any:
    """Return the schema for columns of these types."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    types = {
        "text": text,
        "number": number,
        "count": pa.int64(),
        "truth": pa.bool_(),
        "texts": pa.list_(text),
        "numbers": pa.list_(number),
        "precision": pa.struct([("vision", text), ("language", text)]),
    }
    return pa.schema([(name, types[kind]) for name, kind in kinds.items()])


def stored_text(value: Any) -> Any:
    """Return a text as a table keeps it that is read back: bytes of a path that are no UTF-8 are a
    NUL, which no path holds, and two hex digits each. `text_stored` undoes it."""
    if isinstance(value, str):
        return UNSTORED.sub(lambda found: f"\0{ord(found[0]) & 0xFF:02x}", value)
    return value


def text_stored(value: str) -> str:
    """Return the text that `stored_text` was given."""
    return STORED.sub(lambda found: os.fsdecode(bytes.fromhex(found[1])), value)


def utf8(value: Any) -> Any:
    """Return a text without what UTF-8 cannot encode, replaced as in the other formats."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    return value


def _csv(path: Path, rows: Iterable[Any], kinds: Mapping[str, str]) -> None:
    write_csv(path, rows, tuple(kinds))


def _parquet(path: Path, rows: Iterable[Any], kinds: Mapping[str, str]) -> None:
    write_parquet(path, rows, schema_of(kinds))


TABLES = {"csv": _csv, "parquet": _parquet}
"""Suffix → writer of a format with one file for all captions."""

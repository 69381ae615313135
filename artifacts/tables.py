"""Writes rows as one table, in source order: csv and parquet. It knows nothing of where they come
from.

Both hold the fields of a line of JSON, such as those of `captions.jsonl`, under their own names and
nothing else.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from artifacts.captions import Caption, values_of
from artifacts.files import whole_file

COLUMNS = tuple(Caption.__slots__)
GROUP_ROWS = 10_000
"""Rows of one row group, which a reader, as the writer, holds in memory at once."""


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
            writer.writerow([_cell(value) for value in values_of(row).values()])
        text.detach()


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def write_parquet(path: Path, rows: Iterable[Any], schema: Any = None) -> None:
    """Write typed columns, the same whatever the rows hold. Raises EnvironmentFault."""
    from pyarrow.parquet import ParquetWriter

    left = iter(rows)
    schema = _schema() if schema is None else schema
    with whole_file(path) as file, ParquetWriter(file, schema) as writer:
        while group := list(islice(left, GROUP_ROWS)):
            writer.write_table(table_of(group, schema))


def table_of(rows: Iterable[Any], schema: Any = None) -> Any:
    """Return the same columns as a pyarrow table in memory."""
    import pyarrow as pa

    values = [{k: utf8(v) for k, v in values_of(row).items()} for row in rows]
    return pa.Table.from_pylist(values, _schema() if schema is None else schema)


def _schema() -> Any:
    import pyarrow as pa

    text, seconds = pa.string(), pa.float64()
    schema = pa.schema(
        [
            ("media_path", text),
            ("source", text),
            ("start", seconds),
            ("end", seconds),
            ("caption", text),
            ("model", text),
            ("prompt", text),
            ("precision", pa.struct([("vision", text), ("language", text)])),
            ("frames", pa.list_(seconds)),
            ("features", text),
            ("tokens", pa.int64()),
            ("ended", text),
            ("warnings", pa.list_(text)),
        ]
    )
    assert tuple(schema.names) == COLUMNS
    return schema


def utf8(value: Any) -> Any:
    """Return text without what UTF-8 cannot hold, written as the other formats write it."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    return value


TABLES = {"csv": write_csv, "parquet": write_parquet}
"""Formats that make one file of all captions, by suffix."""

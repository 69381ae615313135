"""The rows of an index: parquet files that identify the source of each vector, and numeric ids."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from artifacts.files import whole_file
from artifacts.tables import parquet_writer, stored_text, text_stored

PixelBox = tuple[float, float, float, float]
Identities = NDArray[np.uint64]
"""Shape (4, rows): of the row, of its content, of the picture or frame that this is part of, and of
the file."""
ROW, CONTENT, PICTURE, MEDIUM = range(4)
IDENTITIES = 4
GROUP_ROWS = 1024
"""Rows of a row group: to show one row, that many are read."""
SIDES = ("x0", "y0", "x1", "y1")
TEXTS = ("key", "path", "media_path", "digest")
"""Columns that hold text; the others hold numbers."""
COLUMNS = (*TEXTS, "time", *SIDES, "level")


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRow:
    """The source of one vector: a medium, or a part of it."""

    key: str
    """Name of the record that the vector was read from."""
    path: str
    """Absolute path of the file."""
    media_path: str
    """Its name in outputs."""
    digest: str
    """`content_key` of the file."""
    time: float | None = None
    """Seconds from the beginning of a video; None for a picture."""
    box: PixelBox | None = None
    """Left, top, right and bottom in pixels; None: all of the picture."""
    level: int = 0
    """Size of the piece that was looked at: 0 is the whole picture."""


def identities_of(rows: Sequence[IndexRow]) -> Identities:
    """Return 64 bits that tell rows apart, then contents, then media. Two of a million rows are
    alike by chance once in 37 million such indexes."""
    found = np.empty((IDENTITIES, len(rows)), np.uint64)
    for at, row in enumerate(rows):
        content = [row.key, row.time, row.box]
        picture = _number(content[:2])
        found[:, at] = (
            _number([*content, row.path]),
            _number(content),
            picture,
            medium_of(row.path),
        )
    return found


def medium_of(path: str) -> int:
    """Return the identity of the medium at a path."""
    return _number(path)


def _number(value: Any) -> int:
    return int.from_bytes(blake2b(json.dumps(value).encode(), digest_size=8).digest(), "little")


class RowsFile:
    """Writes the rows of one shard."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        """Open a file, which `stack` closes."""
        file = stack.enter_context(whole_file(path))
        self._waiting: list[IndexRow] = []
        self._writer = stack.enter_context(parquet_writer(file, _schema(), compression="zstd"))

    def add(self, rows: Sequence[IndexRow]) -> None:
        """Write these rows, or keep them until a group is full."""
        self._waiting += rows
        while len(self._waiting) >= GROUP_ROWS:
            self._write(GROUP_ROWS)

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            self._write(len(self._waiting))

    def _write(self, count: int) -> None:
        import pyarrow as pa

        values = [_values(row) for row in self._waiting[:count]]
        del self._waiting[:count]
        self._writer.write_table(pa.Table.from_pylist(values, _schema()))


def open_rows(file: IO[bytes] | Path) -> Any:
    """Return the parquet file of one shard, of which nothing is read yet but its end. Raises
    OSError, and ValueError for what is none."""
    from pyarrow.parquet import ParquetFile

    return ParquetFile(file)


def rows_at(parquet: Any, numbers: Sequence[int]) -> list[IndexRow]:
    """Return the rows of these numbers, in order; each group is read once."""
    tables = {
        group: parquet.read_row_group(group, use_threads=False)
        for group in {number // GROUP_ROWS for number in numbers}
    }
    return [
        row_of(tables[number // GROUP_ROWS].slice(number % GROUP_ROWS, 1).to_pylist()[0])
        for number in numbers
    ]


def times_at(parquet: Any, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the times of the rows of these numbers, in order; those of pictures are NaN."""
    found = np.empty(len(numbers))
    of = numbers // GROUP_ROWS
    for group in np.unique(of).tolist():
        table = parquet.read_row_group(group, columns=["time"], use_threads=False)
        times = table.column("time").to_numpy()
        found[of == group] = times[numbers[of == group] % GROUP_ROWS]
    return found


def row_of(values: dict[str, Any]) -> IndexRow:
    """Return the row of one line of the table."""
    box = tuple(values.pop(side) for side in SIDES)
    values |= {name: text_stored(values[name]) for name in TEXTS}
    return IndexRow(**values, box=None if None in box else box)


def _values(row: IndexRow) -> dict[str, Any]:
    box = row.box or (None,) * len(SIDES)
    return {
        **{name: stored_text(getattr(row, name)) for name in TEXTS},
        "time": row.time,
        **dict(zip(SIDES, box, strict=True)),
        "level": row.level,
    }


def _schema() -> Any:
    import pyarrow as pa

    kinds = {name: pa.string() for name in TEXTS}
    kinds |= {name: pa.float64() for name in ("time", *SIDES)}
    kinds["level"] = pa.int16()
    assert tuple(kinds) == COLUMNS
    return pa.schema(list(kinds.items()))

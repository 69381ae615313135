"""Reads rows of numbers from a file, a block at a time. Nothing is mapped into memory: a mapped
file that another program overwrites or shortens would end the process."""

import math
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import EnvironmentFault


class StoredFile:
    """An open file that must stay as it was when it was opened. It stays readable after another
    process deletes it."""

    def __init__(self, path: Path, expected_bytes: int, hint: str = "") -> None:
        """`hint` is that of its errors; empty: of a file of an index. Raises FileNotFoundError, and
        EnvironmentFault for a file of another size."""
        self.path, self._hint = path, hint
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self._stamp = self._stamp_now()
        if self._stamp[0] != expected_bytes:
            raise self._damaged("has not the size of its rows")

    def _stamp_now(self) -> tuple[int, int]:
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns

    def read(self, out: NDArray[Any], at: int) -> None:
        """Fill an array from the bytes at `at`. Raises EnvironmentFault if the file cannot be read,
        or is not what it was."""
        try:
            is_whole = os.preadv(self._file, [out.data], at) == out.nbytes
        except OSError as error:
            raise self._damaged(f"cannot be read ({error.strerror})") from error
        if not is_whole:
            self.check()
            raise self._damaged("cannot be read to its end")

    def read_each(self, places: NDArray[np.int64], size: int) -> bytes:
        """Return `size` bytes from each of these places, joined. Raises EnvironmentFault."""
        try:
            found = b"".join([os.pread(self._file, size, at) for at in places.tolist()])
        except OSError as error:
            raise self._damaged(f"cannot be read ({error.strerror})") from error
        self.check()
        if len(found) != size * len(places):
            raise self._damaged("cannot be read to its end")
        return found

    def check(self) -> None:
        """Raise EnvironmentFault if the file was overwritten since it was opened."""
        if self._stamp_now() != self._stamp:
            raise self._damaged("was overwritten while it was open")

    def _damaged(self, what: str) -> EnvironmentFault:
        return damaged_file(self.path, what, self._hint)


class StoredRows:
    """Rows of a file, as an array of shape (rows, width), or (rows) for the width 0."""

    def __init__(self, file: StoredFile, kind: str, start: int, rows: int, width: int = 0) -> None:
        """`start` is the place of the first row in bytes."""
        self._file, self._start, self._rows, self.width = file, start, rows, width
        self._row_shape = (width,) if width else ()
        self.dtype = np.dtype(kind)
        self._row_bytes = self.dtype.itemsize * max(width, 1)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, which: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Return rows that follow one another, or those at some positions. Raises
        EnvironmentFault."""
        if isinstance(which, slice):
            start, stop, _ = which.indices(len(self))
            out = np.empty((stop - start, *self._row_shape), self.dtype)
            self.read(start, out)
            return out
        if not len(which):
            return self[:0]
        first, last = int(which.min()), int(which.max())
        if (last - first) * self._row_bytes <= READ_BYTES * len(which):
            return self[first : last + 1][which - first]
        found = self._file.read_each(self._start + which * self._row_bytes, self._row_bytes)
        return np.frombuffer(found, self.dtype).reshape(-1, *self._row_shape)

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill an array with the rows from `start`. Raises EnvironmentFault."""
        if len(out):
            self._file.read(out, self._start + start * self._row_bytes)
            self._file.check()


READ_BYTES = 1 << 14
"""Bytes that are copied in about the time of one read. Rows are read with those between them if
these are fewer per row."""


def stored(path: Path, kind: str, rows: int, width: int) -> StoredRows:
    """Open a file of rows. Raises FileNotFoundError, EnvironmentFault."""
    size = rows * width * np.dtype(kind).itemsize
    return StoredRows(StoredFile(path, size), kind, 0, rows, width)


def stored_planes(path: Path, kind: str, planes: int, rows: int) -> tuple[StoredRows, ...]:
    """Open a file of several numbers per row, those of one sort after another. Raises
    FileNotFoundError, EnvironmentFault."""
    size = np.dtype(kind).itemsize
    file = StoredFile(path, planes * rows * size)
    return tuple(StoredRows(file, kind, plane * rows * size, rows) for plane in range(planes))


def read_whole(path: Path, kind: str, shape: tuple[int, int]) -> NDArray[Any]:
    """Return a file as an array in memory. Raises FileNotFoundError, EnvironmentFault."""
    out = np.empty(shape, kind)
    StoredFile(path, math.prod(shape) * out.itemsize).read(out, 0)
    return out


def damaged_file(path: Path, what: str, hint: str = "") -> EnvironmentFault:
    """Return the error of a file that is not as it was written."""
    return EnvironmentFault(
        f"{path} {what}",
        hint=hint
        or f"`penstock index verify --index {path.parent}` tells all that is damaged, and what "
        "to do",
    )

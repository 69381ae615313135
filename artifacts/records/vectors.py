"""Stores vectors: one record per chunk, and one file for a whole run."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts.disk.files import whole_file
from artifacts.records.packs import Record

STORED = np.dtype("<f4")
"""Vectors are stored in 32 bit, which loses nothing of any model's output."""
Vectors = NDArray[np.float32]
"""Shape (vectors, dimensions)."""


def vector_record(key: str, vectors: Vectors) -> Record:
    """Return a record of these vectors, one per frame."""
    count, width = vectors.shape
    payload = np.ascontiguousarray(vectors, STORED).tobytes()
    return Record(key=key, meta={"vectors": count, "width": width}, payload=payload)


def vectors_in(record: Record) -> Vectors:
    shape = (int(record.meta["vectors"]), int(record.meta["width"]))
    return np.frombuffer(record.payload, STORED, math.prod(shape)).reshape(shape)


def write_npy(path: Path, shape: tuple[int, int], parts: Iterable[Vectors]) -> None:
    """Write vectors as one array of that shape for `numpy.load`, also memory-mapped. Only one part
    is in memory at a time. Raises EnvironmentFault."""
    head = {"descr": STORED.str, "fortran_order": False, "shape": shape}
    with whole_file(path) as file:
        np.lib.format.write_array_header_1_0(file, head)
        for part in parts:
            file.write(np.ascontiguousarray(part, STORED).tobytes())

"""Stores the probabilities of many tags, without those that are close to 0."""

import numpy as np
from numpy.typing import NDArray

from artifacts.records.packs import Record

PLACE, VALUE = np.dtype("<u4"), np.dtype("<f4")
Probabilities = NDArray[np.float32]
"""Shape (frames, tags)."""


def probability_record(key: str, probabilities: Probabilities, floor: float) -> Record:
    """Return a record of the probabilities that are at least `floor`, one row per frame."""
    frames, tags = probabilities.shape
    places = np.flatnonzero(probabilities >= floor)
    values = probabilities.reshape(-1)[places]
    payload = places.astype(PLACE).tobytes() + values.astype(VALUE).tobytes()
    return Record(key=key, meta={"frames": frames, "tags": tags}, payload=payload)


def probabilities_in(record: Record) -> Probabilities:
    """Return the stored probabilities; others are 0."""
    probabilities = np.zeros((int(record.meta["frames"]), int(record.meta["tags"])), np.float32)
    count = len(record.payload) // (PLACE.itemsize + VALUE.itemsize)
    places = np.frombuffer(record.payload, PLACE, count)
    values = np.frombuffer(record.payload, VALUE, count, count * PLACE.itemsize)
    probabilities.reshape(-1)[places] = values
    return probabilities

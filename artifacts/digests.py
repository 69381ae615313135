"""Digests of JSON values."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)
"""Reused, because `json.dumps` creates one per call, which takes longer than the rest of a key."""


def digest_of(value: Any) -> str:
    """Return 64 hex digits that depend only on the JSON value. The order of a mapping's keys does
    not matter."""
    return hashlib.sha256(ENCODER.encode(value).encode()).hexdigest()


def digests_by_number(
    before: Sequence[Any], numbers: Iterable[int], after: Sequence[Any]
) -> Iterator[tuple[int, str]]:
    """Yield each number with `digest_of([*before, number, *after])`, but encode the lists once."""
    comma = ENCODER.item_separator
    start = hashlib.sha256((ENCODER.encode([*before])[:-1] + comma).encode())
    end = comma * bool(after) + ENCODER.encode([*after])[1:]
    for number in numbers:
        digest = start.copy()
        digest.update(f"{number}{end}".encode())
        yield number, digest.hexdigest()

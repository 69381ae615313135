"""Pluralization and other text helpers for messages."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

SHOWN_NAMES = 3
"""Names that are printed of a long list."""


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2 batches`, `1,200 summaries`."""
    endings = {"ry": "ries", "ch": "ches"}
    many = " or ".join(n[:-2] + endings.get(n[-2:], f"{n[-2:]}s") for n in noun.split(" or "))
    return f"{count:,} {noun if count == 1 else many}"


def first_of(names: Sequence[str]) -> str:
    """Return the first few of many names, such as `a, b, c, …`."""
    return ", ".join([*names[:SHOWN_NAMES], *(["…"] if len(names) > SHOWN_NAMES else [])])


def reasons(counts: Mapping[str, int]) -> str:
    """Return reasons with their counts, the most frequent first: `turned 2, HEIC 1`."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered)


def meant(given: str, names: Iterable[str]) -> str:
    """Return the end of a message that suggests a similar name, if there is one."""
    near = difflib.get_close_matches(given, names, n=1)
    return f" (did you mean {near[0]}?)" if near else ""

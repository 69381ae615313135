"""A plugin of pytest that leaves most rows of long tables to the slow tests; commits take turns.

    pytest -p scripts.prove.rotation

1. What is too long to be run whole is cut into parts, and each commit takes the part that its
   number in the history names: as many commits in a row as there are parts take each part once.
2. A test of more than LONG rows runs a quarter of them, and one that is marked `in_turn` a single
   row; the others are marked `slow`. One that is marked `whole` runs all.
3. The sample of the slow tests (`slow_sample.py`) and the pages that are followed
   (`follow_docs.py --in-turn`) are chosen by the same number.
"""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONG = 8
"""Rows of one test that always run whole."""
PARTS_OF_ROWS = 4
_T = TypeVar("_T")


@cache
def commits() -> int:
    """Return how many commits the history has; 0 outside of a repository and without git."""
    if shutil.which("git") is None:
        return 0
    command = ["git", "rev-list", "--count", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return int(done.stdout or 0)


def in_turn(ordered: Sequence[_T], parts: int) -> list[_T]:
    """Return each `parts`-th of `ordered`, beginning with the one that the commit names."""
    return list(ordered[commits() % parts :: parts])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the rows that are not in turn, before tests are deselected by their marks."""
    for rows in tables(items):
        parts = len(rows) if rows[0].get_closest_marker("in_turn") else PARTS_OF_ROWS
        kept = {item.nodeid for item in in_turn(rows, parts)}
        for item in rows:
            if item.nodeid not in kept:
                item.add_marker("slow")


def tables(items: Sequence[pytest.Item]) -> Iterator[list[pytest.Item]]:
    """Yield the rows of each quick test that has more than LONG, or that is marked `in_turn`."""
    quick = sorted(
        (item for item in items if not item.get_closest_marker("slow")),
        key=lambda item: item.nodeid,
    )
    for _, rows in groupby(quick, key=lambda item: item.nodeid.partition("[")[0]):
        table = list(rows)
        if table[0].get_closest_marker("whole"):
            continue
        if len(table) > LONG or table[0].get_closest_marker("in_turn"):
            yield table

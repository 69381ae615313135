"""Chooses which tests the quick suite keeps, from what a recorded run has shown of them.

1. A function of the product is best looked at by the tests that call it and little else: those
   that mutation testing runs first. Each function has a claim on its LOOKED_AT first ones.
2. Rows of one test function stand or fall together, with the fixtures that are made for them. A
   table that takes more than TABLE_SECONDS is to be marked `in_turn`: it counts with one row, a
   long one with the rows that a commit runs (`rotation.py`).
3. While the suite takes longer than it may, the test function goes that takes the most seconds for
   each function with a claim on it. The claims pass to the next tests in the functions' lists; a
   test function that is the last to call something stays, and so does one that takes no second.
"""

import heapq
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.prove.mutation.mutants import Contexts, function_of
from scripts.prove.rotation import LONG, PARTS_OF_ROWS

LOOKED_AT = 3
SHORT_SECONDS = 1.0
TABLE_SECONDS = 2.0
IS_FUNCTION = re.compile(r"^\S+[:.]_*[a-z]\w*$")
"""Others are modules and classes, which whoever imports them runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """What the tests of a folder cost and show."""

    name: str
    tests: int
    seconds: float
    called: int
    """Functions that they call."""
    alone: int
    """Functions that no other folder's tests call."""
    noticed: int
    """Faults that they killed in the results."""


def folders(contexts: Contexts, killers: Sequence[str]) -> Iterator[Folder]:
    """Yield what each folder of tests costs and shows, the dearest first."""
    seconds: dict[str, float] = defaultdict(float)
    tests: dict[str, int] = defaultdict(int)
    for test, took in contexts.seconds.items():
        seconds[_folder(test)] += took
        tests[_folder(test)] += 1
    called: dict[str, int] = defaultdict(int)
    alone: dict[str, int] = defaultdict(int)
    for callers in contexts.callers.values():
        names = {_folder(test) for test in callers}
        for name in names:
            called[name] += 1
            alone[name] += len(names) == 1
    for name in sorted(seconds, key=lambda name: -seconds[name]):
        yield Folder(
            name=name,
            tests=tests[name],
            seconds=seconds[name],
            called=called[name],
            alone=alone[name],
            noticed=sum(_folder(test) == name for test in killers),
        )


def _folder(test: str) -> str:
    """Return the folder of a test, and its room."""
    return "/".join(test.partition("::")[0].split("/")[1:-1][:3])


class Choice:
    """The test functions that are left, and which functions of the product have a claim on each."""

    def __init__(self, contexts: Contexts) -> None:
        rows: dict[str, list[float]] = defaultdict(list)
        for test, took in contexts.seconds.items():
            rows[function_of(test)].append(took)
        self.seconds = {
            name: sum(took) / (PARTS_OF_ROWS if len(took) > LONG else 1)
            for name, took in rows.items()
        }
        self.in_turn = {
            name
            for name, took in rows.items()
            if len(took) > 1 and self.seconds[name] > TABLE_SECONDS
        }
        self.seconds.update({name: sum(rows[name]) / len(rows[name]) for name in self.in_turn})
        self.left = set(self.seconds)
        self._lists = {
            name: _ranked(contexts, tests)
            for name, tests in contexts.callers.items()
            if IS_FUNCTION.search(name)
        }
        self._lists_of: dict[str, set[str]] = defaultdict(set)
        for name, tests in self._lists.items():
            for test in tests:
                self._lists_of[test].add(name)

    def claims(self, test: str) -> int:
        """Return how many functions have this one among their first."""
        return sum(test in self._first(name) for name in self._lists_of[test])

    def is_last(self, test: str) -> bool:
        """Whether something is called by this test function alone."""
        return any(len(self._lists[name]) == 1 for name in self._lists_of[test])

    def leave_out(self, most_seconds: float) -> list[str]:
        """Leave out test functions until what is left takes so long at most; return them."""
        total = sum(self.seconds.values())
        waiting = [
            (self._worth(test), test) for test in self.left if self.seconds[test] > SHORT_SECONDS
        ]
        heapq.heapify(waiting)
        gone = []
        while total > most_seconds and waiting:
            worth, test = heapq.heappop(waiting)
            if (now := self._worth(test)) > worth:  # others went, and it is looked at more
                heapq.heappush(waiting, (now, test))
                continue
            if self.is_last(test):
                continue
            for name in self._lists_of[test]:
                self._lists[name].remove(test)
            self.left.discard(test)
            total -= self.seconds[test]
            gone.append(test)
        return gone

    def _worth(self, test: str) -> float:
        return (self.claims(test) + 0.01) / (self.seconds[test] + 0.001)

    def _first(self, name: str) -> list[str]:
        return self._lists[name][:LOOKED_AT]


def _ranked(contexts: Contexts, tests: Sequence[str]) -> list[str]:
    """Return the test functions of these tests, those that call and take the least first."""
    cost: dict[str, float] = {}
    for test in tests:
        of_one = contexts.effort(test)
        name = function_of(test)
        cost[name] = min(of_one, cost.get(name, of_one))
    return sorted(cost, key=lambda name: (cost[name], name))

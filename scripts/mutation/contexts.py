"""Which tests call a function, as recorded, and which of them are worth running against a fault."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from scripts.mutation.mutants import Mutant

TESTS_A_MUTANT = 12
SECONDS_A_MUTANT = 40.0
OF_ONE_TEST = 3
"""Parametrizations of one test function that are run at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """What a recorded run of the tests has shown."""

    seconds: dict[str, float]
    """How long each test took, by its id."""
    callers: dict[str, list[str]]
    """The tests that call a function, by `file:function`."""
    breadth: dict[str, int]
    """How many functions a test calls."""

    def tests_for(self, mutant: Mutant) -> list[str]:
        """Return the tests to run, the most likely to fail first: those named for the module, then
        those that call the fewest functions besides."""
        own = {f"tests/test_{'_'.join(Path(mutant.file).with_suffix('').parts)}"}
        ranked = sorted(
            set(self._callers_of(mutant)),
            key=lambda test: (
                not any(test.startswith(name) for name in own),
                self.breadth[test] * (1 + self.seconds[test]),
                test,
            ),
        )
        return self._within_limits(ranked)

    def _callers_of(self, mutant: Mutant) -> Iterable[str]:
        if tests := self.callers.get(f"{mutant.file}:{mutant.function}"):
            return tests
        # A module's or a class's own code runs at import: whoever calls anything of the file.
        prefix = f"{mutant.file}:"
        if mutant.function != "<module>":
            prefix += f"{mutant.function}."
        return [
            test
            for name, tests in self.callers.items()
            if name.startswith(prefix)
            for test in tests
        ]

    def _within_limits(self, ranked: list[str]) -> list[str]:
        chosen: list[str] = []
        left, of_one = SECONDS_A_MUTANT, Counter[str]()
        for test in ranked:
            function = test.partition("[")[0]
            if self.seconds[test] <= left and of_one[function] < OF_ONE_TEST:
                chosen.append(test)
                left -= self.seconds[test]
                of_one[function] += 1
            if len(chosen) == TESTS_A_MUTANT:
                break
        return chosen


def collected(folder: Path) -> Contexts:
    """Put together what all processes of a recorded run have written."""
    seconds: dict[str, float] = {}
    for path in folder.glob("*.seconds"):
        seconds.update(json.loads(line) for line in path.read_text().splitlines())
    callers: dict[str, set[str]] = {}
    for path in sorted(folder.glob("*.calls")):
        test = ""
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("\t"):
                test = line[1:]
            elif test in seconds:
                callers.setdefault(line, set()).add(test)
    breadth = Counter(test for tests in callers.values() for test in tests)
    return Contexts(
        seconds=seconds,
        callers={name: sorted(tests) for name, tests in callers.items()},
        breadth=dict(breadth),
    )


def save(contexts: Contexts, path: Path) -> None:
    """Write the contexts as JSON, each test's id once."""
    tests = sorted(contexts.seconds)
    number = {test: at for at, test in enumerate(tests)}
    callers = {name: [number[test] for test in of] for name, of in contexts.callers.items()}
    text = json.dumps({"seconds": contexts.seconds, "tests": tests, "callers": callers})
    path.write_text(text, encoding="utf-8")


def load(path: Path) -> Contexts:
    """Read what `save` wrote."""
    held = json.loads(path.read_text(encoding="utf-8"))
    callers = {name: [held["tests"][at] for at in of] for name, of in held["callers"].items()}
    breadth = Counter(test for tests in callers.values() for test in tests)
    return Contexts(seconds=held["seconds"], callers=callers, breadth=dict(breadth))

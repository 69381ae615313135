"""A plugin of pytest that runs a part of the slow tests; the commits take turns.

    pytest -m slow -p scripts.prove.rotation -p scripts.prove.slow_sample

A kill, an attack on a server and a family of each route always come first, then the part that is
in turn (`rotation.py`). Tests that are allowed more than LONGEST_SECONDS are left out.
"""

import re
from pathlib import Path

import pytest

from scripts.prove.rotation import commits, in_turn

ROOT = Path(__file__).resolve().parents[2]
LONGEST_SECONDS = 900.0
PARTS = 15
ALWAYS = {
    "a kill": "kill",
    "an attack on a server": r"^tests/attacks/test_(serving|deployments)",
}
"""What every sample has, and what in a test's id tells it."""
ROUTE = re.compile(r"^\| (\w+) \|(?:[^|]*\|){5} (protocol|replay|splice|joint) \|", re.MULTILINE)
FAMILIES = "tests/families/test_models_families.py::"


class Sample:
    """What this process runs of the sample."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Keep the sample alone, what every sample has first; after quick tests are deselected."""
        short = [item for item in items if _seconds_allowed(item) <= LONGEST_SECONDS]
        short.sort(key=lambda item: item.nodeid)
        sample = in_turn(short, PARTS)
        always = []
        for pattern in [*ALWAYS.values(), *_family_patterns()]:
            alike = [item for item in short if re.search(pattern, item.nodeid)]
            if not alike:
                raise pytest.UsageError(f"no slow test is like {pattern!r}: mend slow_sample.py")
            always.append(in_turn(alike, len(alike))[0])
        chosen = list(dict.fromkeys([*always, *sample]))
        config.hook.pytest_deselected(items=[*set(items).difference(chosen)])
        items[:] = chosen

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of what ran."""
        if report.when == "call":
            self.ran.append(f"{report.outcome} {report.duration:5.1f} s {report.nodeid}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what ran."""
        part = commits() % PARTS + 1
        terminalreporter.write_line(f"{len(self.ran)} slow tests, part {part} of {PARTS}:")
        for line in sorted(self.ran):
            terminalreporter.write_line(f"  {line}")


def pytest_configure(config: pytest.Config) -> None:
    """Take part in this run."""
    config.pluginmanager.register(Sample(), "slow-sample")


def _seconds_allowed(item: pytest.Item) -> float:
    """Return the longest time that a mark of the test allows it."""
    marks = [mark.args[0] for mark in item.iter_markers("timeout") if mark.args]
    return max(map(float, marks), default=0.0)


def _family_patterns() -> list[str]:
    """Return for each route of halves what tells a test of one of its families."""
    routes: dict[str, list[str]] = {}
    for family, route in ROUTE.findall((ROOT / "docs/models.md").read_text(encoding="utf-8")):
        routes.setdefault(route, []).append(family)
    return [rf"^{FAMILIES}\w+\[({'|'.join(families)})[:\]]" for families in routes.values()]

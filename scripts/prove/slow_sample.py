"""A plugin of pytest that runs a sample of the slow tests, for as long as CI has time for them.

    pytest -m slow -p scripts.prove.slow_sample

The digest of the commit decides the order, so that the same commit runs the same tests first and
each commit others. A kill, an attack on a server and a family of each route always come first; what
has not begun after SECONDS is skipped. Tests that are allowed more than five minutes are left out.
"""

import hashlib
import re
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
LONGEST_SECONDS = 300.0
AT_MOST = 120
"""Tests that are worth ordering: more never fit."""
ALWAYS = {
    "a kill": "kill",
    "an attack on a server": r"^tests/attacks/test_(serving|deployments)",
}
"""What every sample has, and what in a test's id tells it."""
ROUTE = re.compile(r"^\| (\w+) \|(?:[^|]*\|){5} (protocol|replay|splice|joint) \|", re.MULTILINE)
FAMILIES = "tests/families/test_models_families.py::"


class Sample:
    """What this process runs of the sample, and until when."""

    def __init__(self) -> None:
        self.digest = _digest()
        self.always: set[str] = set()
        self.ends = 0.0
        self.ran: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Keep the sample alone, what every sample has first; after quick tests are deselected."""
        kept = [item for item in items if _seconds_allowed(item) <= LONGEST_SECONDS]
        kept.sort(key=lambda item: hashlib.sha256((self.digest + item.nodeid).encode()).digest())
        for pattern in [*ALWAYS.values(), *_family_patterns()]:
            found = next((item for item in kept if re.search(pattern, item.nodeid)), None)
            if found is None:
                raise pytest.UsageError(f"no slow test is like {pattern!r}: mend slow_sample.py")
            self.always.add(found.nodeid)
        kept.sort(key=lambda item: item.nodeid not in self.always)
        chosen = set(kept[:AT_MOST])
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = kept[:AT_MOST]
        self.ends = time.monotonic() + SECONDS

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip what begins too late."""
        if time.monotonic() > self.ends and item.nodeid not in self.always:
            pytest.skip("the time of the sample is over")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of what ran."""
        if report.when == "call":
            self.ran.append(f"{report.outcome} {report.duration:5.1f} s {report.nodeid}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what ran."""
        terminalreporter.write_line(f"{len(self.ran)} slow tests, chosen by {self.digest}:")
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


def _digest() -> str:
    """Return the commit's digest; `none` outside of a repository."""
    command = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"

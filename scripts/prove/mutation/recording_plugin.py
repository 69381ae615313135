"""The part of the recording that pytest runs: what is called counts for each test anew."""

import json
import os
import sys
from collections.abc import Generator

import pytest

from scripts.prove.mutation.recording import RECORD


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Report every function again in this test."""
    sys.monitoring.restart_events()  # type: ignore[attr-defined,unused-ignore]
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down how many seconds a part of a test took: its fixtures, its call, its end."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None and hasattr(report, "node"):
        return  # the process that hands out the tests hears of each a second time
    with open(f"{os.environ[RECORD]}/{worker or 'main'}.seconds", "a", encoding="utf-8") as file:
        file.write(json.dumps([report.nodeid, report.when, round(report.duration, 3)]) + "\n")

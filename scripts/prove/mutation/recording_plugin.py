"""The part of the recording that pytest runs: what is called counts for each test anew."""

import json
import os
import sys
import time
from collections.abc import Generator

import pytest

from scripts.prove.mutation.recording import RECORD


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Report every function again in this test, and write down how many seconds it took."""
    sys.monitoring.restart_events()  # type: ignore[attr-defined,unused-ignore]
    began = time.perf_counter()
    result = yield
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    with open(f"{os.environ[RECORD]}/{worker}.seconds", "a", encoding="utf-8") as file:
        file.write(json.dumps([item.nodeid, round(time.perf_counter() - began, 3)]) + "\n")
    return result

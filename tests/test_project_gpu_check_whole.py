"""The check of a GPU as its user starts it, on machines that are stood in for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.gpu_check.rows import PAGE
from tests.support import gpus
from tests.support.commands import completed
from tests.support.fake_gpu.state import Machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
QUICK = ("context", "uuid", "forks", "features")
"""Checks that ask the driver, and one that computes, without a whole run."""
FIRST = ("kernels", "model, bf16", "model, loads")
"""The first checks, without runs."""


def check(machine: Machine, folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """The check, which leaves the page of the docs alone."""
    (folder / "machine").mkdir()
    environment = gpus.environment(
        machine.write(folder / "machine"), OMP_NUM_THREADS="1", PENSTOCK_LOCKS=str(folder)
    )
    before = PAGE.read_text()
    done = completed(
        [sys.executable, "-m", "scripts.gpu_check", "--out", str(folder), *options], env=environment
    )
    assert PAGE.read_text() == before
    assert "Traceback" not in done.stdout + done.stderr
    return done


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "gpu.json").read_text())["rows"]
    return found


def test_every_row_is_ok_or_skipped(tmp_path: Path) -> None:
    done = check(gpus.plain(), tmp_path, "--minutes", "45")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(each["verdict"] == "ok" for each in rows(tmp_path)) >= 25


def test_the_first_rows_are_ok_and_come_from_one_process(tmp_path: Path) -> None:
    machine = gpus.plain()
    done = check(machine, tmp_path, *(option for word in FIRST for option in ("--only", word)))
    assert done.returncode == 0, done.stdout + done.stderr
    found = {each["name"]: each for each in rows(tmp_path)}
    step = found["a step of 64 rows, bf16"]["figures"]
    assert step["wall_ms"] > 0 and step["calls"] > 100 and step["tokens_per_second"] > 0
    assert found["engine check, bf16"]["figures"] == {"rows": 64}
    assert found["attention of a step by math"]["figures"]["alone"] is True
    assert found["load of the language half, bf16"]["figures"]["bytes"] > 0
    assert "no CUDA graph of a stand-in" in found["a step of 64 rows, bf16, recorded"]["found"]
    # The card is looked at in one process, and all else is computed in another.
    assert len(gpus.contexts(tmp_path / "machine")) == 2


@pytest.mark.parametrize("mode", ["mig", "no_memory_info"])
def test_on_other_machines_what_the_driver_does_not_tell_is_skipped(
    mode: str, tmp_path: Path
) -> None:
    words = [option for word in QUICK for option in ("--only", word)]
    done = check(gpus.MODES[mode], tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    good = [each["name"] for each in rows(tmp_path) if each["verdict"] == "ok"]
    assert len(good) >= 5, good

"""The check of a GPU as its user starts it, on machines that are stood in for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.gpu_check import page
from scripts.gpu_check.setting import ROOT
from tests.support import gpus
from tests.support.fake_gpu.state import Machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
QUICK = ("context", "uuid", "forks", "features", "streamed", "nf4")
"""Checks that ask the driver or compute, without a whole run."""
UNUSABLE = {
    "old_driver": (gpus.old_driver(), 1, "driver on your system is too old"),
    "no_kernels": (gpus.no_kernels(), 1, "no kernel image is available"),
    "out_of_order": (gpus.plain(init_error="LibRmVersionMismatch"), 2, "driver does not respond"),
    "no_driver": (gpus.plain(init_error="LibraryNotFound"), 2, "no GPU"),
}


def check(machine: Machine, folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """The check, which leaves the page of the docs alone."""
    (folder / "machine").mkdir()
    environment = gpus.environment(
        machine.write(folder / "machine"), OMP_NUM_THREADS="1", PENSTOCK_LOCKS=str(folder)
    )
    before = page.PAGE.read_text()
    done = subprocess.run(
        [sys.executable, "-m", "scripts.gpu_check", "--out", str(folder), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert page.PAGE.read_text() == before
    assert "Traceback" not in done.stdout + done.stderr
    return done


def rows(folder: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((folder / "gpu.json").read_text())["rows"]
    return found


def test_every_row_is_ok_or_skipped(tmp_path: Path) -> None:
    done = check(gpus.plain(), tmp_path, "--minutes", "45")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(each["verdict"] == "ok" for each in rows(tmp_path)) >= 25


@pytest.mark.parametrize("mode", gpus.MODES)
def test_on_other_machines_what_the_driver_does_not_tell_is_skipped(
    mode: str, tmp_path: Path
) -> None:
    words = [option for word in QUICK for option in ("--only", word)]
    done = check(gpus.MODES[mode], tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    good = [each["name"] for each in rows(tmp_path) if each["verdict"] == "ok"]
    assert len(good) >= 6, good


@pytest.mark.parametrize("mode", UNUSABLE)
def test_a_gpu_that_cannot_be_used_is_named(mode: str, tmp_path: Path) -> None:
    machine, code, words = UNUSABLE[mode]
    done = check(machine, tmp_path, "--only", "context", "--only", "uuid")
    assert done.returncode == code, done.stdout + done.stderr
    told = done.stderr if code == 2 else json.dumps(rows(tmp_path))
    assert words in told

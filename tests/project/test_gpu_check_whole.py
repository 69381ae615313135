"""The check of a GPU as its user starts it, on machines that are stood in for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.prove.gpu_check.first import FILE, PARTS
from scripts.prove.gpu_check.rows import PAGE
from tests.support import gpus
from tests.support.commands import completed, ended_cpu_seconds
from tests.support.fake_gpu.state import Machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
QUICK = ("forks", "kernels of products", "streamed encoder", "layer by layer")
"""Checks without a whole run."""
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
        [sys.executable, "-m", "scripts.prove.gpu_check", "--out", str(folder), *options],
        env=environment,
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
    assert sum(each["verdict"] == "ok" for each in rows(tmp_path)) >= 20


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
    # The card is looked at in one process, and all else is computed in another.
    assert len(gpus.contexts(tmp_path / "machine")) == 2


def test_the_first_parts_find_all_that_a_stand_in_has(tmp_path: Path) -> None:
    began = ended_cpu_seconds()
    done = check(gpus.plain(), tmp_path, "--first", "--minutes", "45")
    assert done.returncode == 0, done.stdout + done.stderr
    # Not by the clock: other tests compute beside this one.
    assert ended_cpu_seconds() - began < 240
    assert (tmp_path / FILE).read_text() == done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["part"] for line in lines if "seconds" in line] == [each.name for each in PARTS]
    found = {line["name"]: line for line in lines if "name" in line}
    for precision in ("bf16", "fp16", "nf4"):
        for rows in (8, 64):
            figures = found[f"a step of {rows} rows, {precision}, recorded"]["figures"]
            assert figures["apart"] == 0.0 and figures["replayed"] > 10
    assert found["captions, recorded steps beside plain ones"]["verdict"] == "ok"
    assert found["steps of a run that are replayed"]["figures"]["replayed"] > 0
    for name in (
        "windows of 1 x 28 x 36 patches, bfloat16",
        "a clip through the vision half, recorded",
        "captions, with nothing stored beside stored features",
        "steps of a LoRA, nf4",
    ):
        assert found[name]["verdict"] == "ok"
    assert found["tokens, language half layer by layer"]["verdict"] == "ok"
    assert "tensors do not lie on the device" in found["model, streamed"]["skipped"]


@pytest.mark.parametrize("mode", ["mig", "no_memory_info"])
def test_on_other_machines_what_the_driver_does_not_tell_is_skipped(
    mode: str, tmp_path: Path
) -> None:
    words = [option for word in QUICK for option in ("--only", word)]
    done = check(gpus.MODES[mode], tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    good = [each["name"] for each in rows(tmp_path) if each["verdict"] == "ok"]
    assert len(good) >= 4, good

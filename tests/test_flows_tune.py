"""`penstock tune` on the demo: the loss falls, the adapter is one of PEFT, and a training that is
killed goes on to the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.cli.main import main
from flows.console.display import Display
from flows.machine.launch import DirectLauncher
from flows.options.tune import TuneConfig
from flows.results.tuned import Tuned
from flows.running.tune import tune
from penstock_demo import CHECKPOINT
from penstock_demo.clips import write_clips
from tests.support.clips import profile_of
from tests.support.pipeline import PENSTOCK, ROOT
from tests.support.starving import STARVED, VARIABLE

CLIPS = 6
KILLS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with captions of another style beside them."""
    place = tmp_path_factory.mktemp("tune")
    for truth in write_clips(place / "clips", CLIPS, 3):
        words = truth.caption.lower().rstrip(".").split()
        (place / "clips" / truth.file).with_suffix(".txt").write_text("tags: " + ", ".join(words))
    return place


def asked(place: Path, out: str, *more: str) -> list[str]:
    where = ["--model", "demo", "--out", str(place / out), "--store", str(place / "store")]
    return ["tune", str(place / "clips"), *where, "--batch-size", "4", *more]


def record(place: Path, out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / out / "tune.json").read_text())
    return found


@pytest.mark.slow
def test_the_loss_falls_and_the_adapter_is_as_peft_writes_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(place, "first", "--steps", "8", "--lr", "5e-3", "--validate", "0.3")) == 0
    told = capsys.readouterr().out.strip()
    assert told.startswith("8 steps: loss ") and f"adapter in {place / 'first'}" in told
    assert told.endswith(f"--adapter {place / 'first'} --store {place / 'store'}`")
    found = record(place, "first")
    assert (found["examples"], found["held_out"], found["steps"]) == (4, 2, 8)
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    assert [score["step"] for score in found["scores"]] == [0, found["best_step"]]
    from peft import PeftConfig
    from safetensors.torch import load_file

    config = PeftConfig.from_pretrained(str(place / "first"))
    assert (config.peft_type, config.r) == ("LORA", 16)
    numbers = load_file(place / "first" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.") for name in numbers)
    assert any(bool(value.any()) for name, value in numbers.items() if "lora_B" in name)
    assert not any("vision" in name or "visual" in name for name in numbers)
    before = (place / "first" / "adapter_model.safetensors").stat().st_mtime_ns
    assert main(asked(place, "first", "--steps", "8", "--lr", "5e-3", "--validate", "0.3")) == 0
    assert (place / "first" / "adapter_model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_bytes(place: Path) -> None:
    more = ["--steps", "64", "--precision", "fp32", "--validate", "0.3", "--lr", "2e-3"]
    assert main(asked(place, "whole", *more)) == 0
    draw = random.Random(7)
    for kill in range(KILLS):
        at = None if kill % 2 else draw.uniform(0.5, 8.0)
        _killed(asked(place, "killed", *more), place / "killed" / "checkpoint.safetensors", at)
    assert main(asked(place, "killed", *more)) == 0
    whole, killed = (place / name / "adapter_model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    assert record(place, "whole")["losses"] == record(place, "killed")["losses"]


def _killed(command: list[str], checkpoint: Path, after: float | None) -> None:
    """Run a training for so many seconds, or else until a checkpoint appears that was not there,
    and kill it."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    process = subprocess.Popen(
        [*PENSTOCK, *command], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL
    )
    if after is not None:
        time.sleep(after)
    until = time.monotonic() + 200
    while after is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"path": "none.mp4", "caption": "a"}, "none.mp4: no such file (1 of 1 media are missing)"),
        pytest.param(
            {"path": "clip-01.mp4", "caption": "a", "start": 3.0, "end": 4.0},
            "matches the caption's start and end",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"path": "none.mp4", "caption": "a", "features": "f" * 64},
            "none.mp4: no stored features of demo",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"path": "clip-01.mp4", "caption": "a", "prompt": "What is <|video_pad|>?"},
            "an image placeholder of demo",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_learned_from_is_told_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], says: str
) -> None:
    data = place / "clips" / "data.jsonl"
    data.write_text(json.dumps(row))
    command = asked(place, "wrong", "--validate", "0", "--quiet")
    command[1] = str(data)
    assert main(command) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert says in told[-1] and not any("Traceback" in line for line in told)


@pytest.mark.slow
def test_what_runs_out_of_memory_goes_on_a_rung_lower(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First fewer examples at once, which the process does by itself; then layers computed again,
    in another one. The losses are those of a training that had room."""
    config = TuneConfig(
        data=str(place / "clips"),
        model="demo",
        out=str(place / "tight"),
        store=str(place / "store"),
        precision="fp32",
        steps=8,
        batch_size=4,
        validate=0.3,
    )
    roomy = tune(replace(config, out=str(place / "roomy")), Display(quiet=True))
    monkeypatch.setenv(VARIABLE, json.dumps({"tune": {"rows": 1, "again": True}}))
    tight = tune(config, Display(quiet=True), lambda listen: DirectLauncher(listen, STARVED))
    told = json.loads((place / "tight" / "run" / "run.json").read_text())
    names = [rung["name"] for rung in told["rungs"] if rung["stage"] == "tune"]
    assert names == ["batch 2, fp32", "batch 1, fp32", "batch 1, fp32, gradient checkpointing"]
    assert isinstance(roomy, Tuned) and isinstance(tight, Tuned)
    assert tight.record["losses"] == pytest.approx(roomy.record["losses"], rel=1e-3)


def test_the_parent_imports_no_model_library() -> None:
    code = (
        "import flows.running.tune, sys; print([m for m in ('torch', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_process_that_trains_opens_no_clip_and_loads_no_tower(
    place: Path, tmp_path: Path
) -> None:
    """Its processes are told from others by what they write; the tower's tensors are in the same
    file as the others, so it is asked what it holds, too."""
    command = asked(place, "traced", "--steps", "2", "--validate", "0", "--quiet")
    assert main(command) == 0  # by now all is encoded
    shutil.rmtree(place / "traced")
    trace = ["strace", "-ff", "-qq", "-e", "trace=openat,rename", "-o", str(tmp_path / "opened")]
    subprocess.run([*trace, *PENSTOCK, *command], cwd=ROOT, check=True)
    told = {path: path.read_text(errors="replace") for path in tmp_path.glob("opened.*")}
    trained = [text for text in told.values() if "adapter_model.safetensors" in text]
    assert trained
    opened = [line for text in trained for line in text.splitlines() if "ENOENT" not in line]
    assert not [line for line in opened if ".mp4" in line or "/frames/" in line]
    assert [line for line in opened if "/features/" in line]
    held = profile_of(CHECKPOINT).language.parameters
    assert record(place, "traced")["frozen_parameters"] == held

"""`penstock learn` on the demo: two rounds by the command line. Rounds that are killed at random
moments of each step end with the same adapter, captions and decisions."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import penstock
import penstock_demo
from artifacts.errors import UsageError
from artifacts.texts.edits import read_edits
from flows.outputs.record import rounds
from flows.outputs.record.rounds import rounds_in
from tests.support import commands
from tests.support.learning import decide_in, style
from tests.support.pipeline import PENSTOCK, ROOT, read_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("LEARN_KILLS", "10"))
"""Kills in each step."""
OPTIONS = ("--steps", "24", "--batch-size", "2", "--lr", "5e-3")
STEPS = {"train": (rounds.CHOSEN,), "score": (rounds.TRAINED,), "recaption": (rounds.SCORED,)}
WRITE = (rounds.RECAPTIONED, rounds.CARRIED)
COMPARED = ("captions.jsonl", "captions.csv", "media.jsonl")


class Folder:
    """A run's folder below a root, with a store of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"

    def penstock(self, *words: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return commands.begun(
            [*PENSTOCK, *words], cwd=self.root, env=environment, start_new_session=True
        )

    def run(self, *words: str) -> str:
        process = self.penstock(*words)
        output, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, output
        return output

    def caption(self) -> None:
        where = ["--model", "demo", "--out", "out", "--store", "store", "--format", "txt,csv,vtt"]
        few = ["--chunk", "0.5", "--frames", "4", "--max-new-tokens", "32"]
        self.run("caption", str(penstock_demo.CLIPS), *where, *few)

    def learn(self, *more: str) -> str:
        return self.run("learn", "out", *OPTIONS, *more)

    def files(self) -> dict[str, bytes]:
        """Return what has to be the same after kills."""
        found = {name: (self.out / name).read_bytes() for name in COMPARED}
        found |= {path.name: path.read_bytes() for path in self.out.glob("*.vtt")}
        for path in self.out.glob("learn/*/adapter/adapter_model.safetensors"):
            found[str(path.relative_to(self.out))] = path.read_bytes()
        return found

    def lines(self) -> list[dict[str, Any]]:
        return read_lines(self.out / "captions.jsonl")

    def phase(self) -> str:
        found = rounds_in(self.out)
        return found[-1].phase if found else ""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A folder with corrections and acceptances of every third caption."""
    folder = Folder(tmp_path_factory.mktemp("learned"))
    folder.caption()
    decide_in(folder.out, lambda at, text: (style(text), "accepted") if at % 3 == 0 else None)
    return folder


def copied(folder: Folder, root: Path) -> Folder:
    """Return a copy whose recorded command is signed for it."""
    made = Folder(root)
    shutil.copytree(folder.root, root, dirs_exist_ok=True)
    made.caption()  # nothing is computed, and the command is recorded for this folder
    return made


def test_two_rounds_by_the_command_line(
    begun: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(begun, tmp_path)
    message = folder.learn("--dry-run")
    assert "fits" in message and "assumed" in message and "SOURCES" not in message, message
    expected = [line["caption"] for line in folder.lines()[::3]]
    message = folder.learn()
    assert "accepted" in message and "penstock review" in message, message
    assert "scoring: 1 text to do" in message, message
    decide_in(folder.out, lambda at, texts: (style(texts), "") if at % 3 else None)
    message = folder.learn()
    one, two = rounds_in(folder.out)
    assert one.accepted and two.accepted, message
    assert two.previous.endswith("round-001/adapter")
    assert [line["caption"] for line in folder.lines()[::3]] == expected
    text = (folder.out / "captions.csv").read_text()
    assert all(caption in text for caption in expected)
    assert "nothing new to learn" in folder.learn()
    options: Any = {"steps": 24, "batch_size": 2, "lr": 5e-3}
    with pytest.raises(UsageError, match=r"captions in .* were made in "):
        penstock.learn(folder.out, **options)
    monkeypatch.chdir(folder.root)
    assert not penstock.learn("out", **options).is_new
    assert "accepted" in folder.run("status", "out")
    folder.run("report", "out")
    # The recorded command repeats the run with its adapter.
    words = json.loads((folder.out / "run.json").read_text())["command"]["words"]
    before = folder.files()
    folder.run(*words)
    assert folder.files() == before


@pytest.fixture(scope="module")
def undisturbed(
    begun: Folder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Folder, dict[str, float]]:
    """A finished round, and the seconds of each of its steps."""
    folder = copied(begun, tmp_path_factory.mktemp("undisturbed"))
    process, seen = folder.penstock("learn", "out", *OPTIONS), dict[str, float]()
    while process.poll() is None:
        seen.setdefault(folder.phase(), time.monotonic())
        time.sleep(0.02)
    output, _ = process.communicate()
    seen.setdefault(folder.phase(), time.monotonic())
    assert process.returncode == 0, output
    times = pairwise(seen.items())
    return folder, {phase: ended - began for (phase, began), (_, ended) in times}


@pytest.mark.parametrize("step", [*STEPS, "write"])
def test_a_round_that_is_killed_in_a_step_ends_with_the_same_bytes(
    begun: Folder, undisturbed: tuple[Folder, dict[str, float]], tmp_path: Path, step: str
) -> None:
    whole, seconds = undisturbed
    folder, draw = copied(begun, tmp_path), random.Random(step)
    phases = STEPS.get(step, WRITE)
    longest = sum(seconds.get(phase, 0.5) for phase in phases)
    kills, saved = Counter[str](), tmp_path.with_name(f"{tmp_path.name}-saved")
    while sum(kills[phase] for phase in phases) < KILLS:
        process = folder.penstock("learn", "out", *OPTIONS)
        while process.poll() is None and folder.phase() not in phases:
            time.sleep(0.005)
        # The first is killed where the step begins. Starting takes each later attempt some seconds.
        time.sleep(draw.uniform(0, longest + 2) if saved.exists() else 0)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills[folder.phase()] += process.returncode == -signal.SIGKILL
        if folder.phase() in phases and not saved.exists():
            shutil.copytree(folder.root, saved)
        elif folder.phase() not in phases:  # it got too far
            shutil.rmtree(folder.root)
            shutil.copytree(saved, folder.root)
    print(f"{step}: {dict(kills)} kills, step takes {longest:.1f} s", file=sys.stderr)
    message = folder.learn() if folder.phase() != rounds.DONE else ""
    assert folder.phase() == rounds.DONE, message
    assert folder.files() == whole.files()
    assert read_edits(folder.out).now == read_edits(whole.out).now
    (one,), (other,) = rounds_in(folder.out), rounds_in(whole.out)
    for name in ("examples", "held_out", "before", "after", "lower", "accepted", "captions"):
        assert getattr(one, name) == getattr(other, name), name
    assert (one.changed, one.carried) == (other.changed, other.carried)
    keys = [each.key for each in (*one.examples, *one.held_out)]
    assert len(set(keys)) == len(keys) == len(folder.lines()[::3])

"""A run whose decode steps are compiled without a request, and what it does when that fails."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from artifacts.errors import PenstockError, StageDied, UsageError
from flows.machine.launch import StageCall
from flows.running import stage_calls
from penstock_demo import CLIPS
from stages.decode.engines.inflight.compiled import CompiledStep
from stages.decode.job import DecodeJob
from stages.process.outcome import StageOutcome
from tests.support import gpus
from tests.support.inside import Ended, InsideLauncher, run_through
from tests.support.pipeline import ROOT, SECONDS, Place

SMALL = "import stages.decode.engines as engines; engines.COMPILED_CAPTIONS = 2"
COMMAND = f"import sys; {SMALL}; from flows.cli.main import main; sys.exit(main())"


@dataclass(kw_only=True, slots=True)
class Failed(Ended):
    error: PenstockError

    def wait(self) -> StageOutcome:
        raise self.error


@dataclass(kw_only=True, slots=True)
class FailingLauncher(InsideLauncher):
    """Decode processes that try compiled steps end with an error."""

    error: PenstockError

    def start(self, call: StageCall) -> Ended:
        if not (isinstance(call.job, DecodeJob) and call.job.compiled_namespace):
            return InsideLauncher.start(self, call)
        self.started.append("compiled")
        return Failed(outcome=StageOutcome(name=call.name), error=self.error)


def place_in(folder: Path) -> Place:
    clips = folder / "clips"
    clips.mkdir()
    for name in ("clip-01.mp4", "clip-02.mp4"):
        shutil.copy(CLIPS / name, clips / name)
    return Place(clips=clips, out=folder / "out", store=folder / "store")


@pytest.mark.parametrize(
    "error",
    [
        UsageError("cannot compile the decode step", hint=""),
        StageDied("the decode stage crashed", hint="", return_code=-11),
    ],
)
def test_a_run_goes_on_without_compiled_steps_once_they_fail(
    error: PenstockError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_calls, "compiles", lambda *_: True)
    place, launcher = place_in(tmp_path), FailingLauncher(error=error)
    run_through(launcher, place)
    assert [name for name in launcher.started if name in ("compiled", "decode")] == [
        "compiled",
        "decode",
    ]
    decode = place.stages()["decode"]
    assert decode["notes"]["engine"] == "inflight"
    assert decode["warnings"] == [f"decode: steps are no longer compiled: {error.message}"]
    assert len(place.captions()) == 2


def test_an_error_that_has_another_cause_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_calls, "compiles", lambda *_: True)
    launcher = FailingLauncher(error=StageDied("the decode stage failed: no", hint=""))
    with pytest.raises(StageDied, match="failed: no"):
        run_through(launcher, place_in(tmp_path))


def test_captions_by_compiled_steps_answer_a_later_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_in(tmp_path)
    with monkeypatch.context() as compiling:
        compiling.setattr(stage_calls, "compiles", lambda *_: True)
        compiling.setattr(CompiledStep, "of", lambda step, model: model)
        run_through(InsideLauncher(), place)
    assert place.stages()["decode"]["notes"]["engine"] == "inflight-compiled"
    first, launcher = place.captions(), InsideLauncher()
    assert len(first) == 2
    run_through(launcher, place)
    assert "decode" not in launcher.started and place.captions() == first


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_large_job_on_a_gpu_tries_compiled_steps_and_says_why_not(tmp_path: Path) -> None:
    """The stand-in computes on the CPU, where torch cannot compile for the card that it shows."""
    place = place_in(tmp_path)
    environment = gpus.environment(gpus.plain().write(tmp_path / "gpu"))
    words = place.command()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words[words.index("caption") :]],
        cwd=ROOT,
        env={**environment, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    decode = place.stages()["decode"]
    assert decode["notes"]["engine"] == "inflight" and len(place.captions()) == 2
    assert decode["notes"]["compiled_reason"].startswith("cannot compile the decode step")
    (planned,) = (
        stage
        for stage in json.loads((place.out / "run.json").read_text())["plan"]["memory"]["stages"]
        if stage["stage"] == "decode"
    )
    assert planned["load"]["captions"] == 2

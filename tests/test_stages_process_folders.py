import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import penstock_demo
from artifacts.errors import EnvironmentFault
from flows.job.launch import DirectLauncher, StageCall
from stages.process.environment import child_environment, compiler_folder
from stages.process.events import Event, Item
from stages.process.report import Report

HERE = Path(__file__)


# What the child of a test runs.
def loses_its_folder(job: dict[str, Any], report: Report) -> None:
    report.item("one")
    shutil.rmtree(job["out"])
    report.item("two")


def test_a_folder_that_goes_away_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{HERE.parent}:{HERE.parent.parent}")
    heard: list[Event] = []
    launcher = DirectLauncher(
        lambda _, event: heard.append(event), {"loses": f"{HERE.stem}:loses_its_folder"}
    )
    out = tmp_path / "out"
    call = StageCall(
        name="loses", arguments={"out": str(out)}, device="cpu", log=out / "logs" / "loses.log"
    )
    with pytest.raises(EnvironmentFault, match=f"{out}/logs is gone") as caught:
        launcher.start(call).wait()
    assert "run the same command again" in caught.value.hint
    assert [event.key for event in heard if isinstance(event, Item)] == ["one"]


def test_a_stage_that_is_stopped_while_it_starts_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr("stages.process.stage_process._fresh", _interrupted)
    call = StageCall(name="probe", arguments={}, device="cpu", log=tmp_path / "probe.log")
    open_before = os.listdir("/proc/self/fd")
    with pytest.raises(KeyboardInterrupt):
        DirectLauncher(lambda *_: None).start(call)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == len(open_before)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_stage_leaves_nothing_in_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    call = StageCall(
        name="describe",
        arguments={"model": str(penstock_demo.CHECKPOINT)},
        device="cpu",
        log=tmp_path / "describe.log",
    )
    DirectLauncher(lambda *_: None).start(call).wait()
    monkeypatch.undo()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_the_user_says_of_the_compiler_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    assert child_environment()["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert child_environment()["TORCHINDUCTOR_CACHE_DIR"] == compiler_folder()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "TORCHINDUCTOR_CACHE_DIR" not in child_environment()
    assert not os.path.exists("/mine")

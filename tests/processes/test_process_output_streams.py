"""Commands whose output nobody reads, or whose log lies on a full disk: they work to their end."""

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.core.console.display import Display
from flows.interfaces.cli.main import main
from stages.process.fork_client import ForkServer
from stages.process.output_streams import LastingStream, failed_writes
from tests.support.pipeline import PENSTOCK, ROOT, SECONDS
from tests.support.started import started


def ended(arguments: Sequence[str], **streams: Any) -> "subprocess.CompletedProcess[str]":
    named = {"stderr": subprocess.PIPE, "timeout": SECONDS, "check": False, **streams}
    return subprocess.run([*PENSTOCK, *arguments], cwd=ROOT, text=True, **named)


def unread() -> int:
    """A pipe whose reader has ended."""
    theirs, ours = os.pipe()
    os.close(theirs)
    return ours


def sifting(folder: Path) -> list[str]:
    for index in range(3):
        folder.joinpath("in").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (index * 80, 90, 40)).save(folder / "in" / f"{index}.png")
    out = ["--out", str(folder / "out"), "--store", str(folder / "store")]
    return ["sift", str(folder / "in"), *out]


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_works_to_its_end_when_nobody_reads_its_output(
    stream: str, tmp_path: Path
) -> None:
    more = ["--json"] if stream == "stdout" else []
    done = ended([*sifting(tmp_path), *more], **{"stdout": subprocess.DEVNULL, stream: unread()})
    table = tmp_path / "out" / "marks.jsonl"
    rows = table.read_text().splitlines() if table.exists() else []
    assert (done.returncode, len(rows), done.stderr or "") == (0, 3, "")


@pytest.mark.slow
def test_the_exit_code_is_that_of_the_work_when_nobody_reads_it(tmp_path: Path) -> None:
    sifting(tmp_path)
    words = ["plan", str(tmp_path / "in"), "--model", "demo", "--memory", "1MB"]
    assert ended(words, stdout=unread()).returncode == 3
    assert ended(["status", str(tmp_path)], stdout=unread()).returncode == 2


@pytest.mark.slow
def test_a_log_on_a_full_disk_stops_no_work_and_a_full_output_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = ended(sifting(tmp_path), stdout=subprocess.PIPE, stderr=full)
        assert (done.returncode, "3 of 3" in done.stdout or done.stdout) == (0, True)
        done = ended([*sifting(tmp_path), "--json"], stdout=full)
    assert done.returncode == 5
    assert "the output is incomplete" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_pipe_that_broke_elsewhere_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("flows.interfaces.cli.main.run", broken)
    assert main(["doctor"]) == 5
    assert "BrokenPipeError" in capsys.readouterr().err


def test_a_display_of_a_program_that_imports_penstock_raises_nothing() -> None:
    before = failed_writes()
    with os.fdopen(unread(), "w") as stream:
        Display(to=stream).print_line("a note")
    with open("/dev/full", "w") as full:
        kept = LastingStream(full)
        Display(to=kept).print_line("a note")  # type: ignore[arg-type]
        kept.end()
    assert failed_writes() >= before + 2


def printing(job: dict[str, Any], report: Any) -> None:
    """A stage whose library prints more than its log can hold."""
    print("x" * 100_000, flush=True)
    sys.stderr.write("y" * 100_000)
    report.answered("made")


@pytest.mark.in_turn
@pytest.mark.parametrize("forked", [False, True])
def test_a_stage_whose_log_is_full_goes_on(
    forked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(log: Path) -> io.FileIO:
        return io.FileIO("/dev/full", "ab")

    monkeypatch.setattr("stages.process.stage_process._appending", full)
    with ForkServer() as server:
        outcome = started(__name__, "printing", tmp_path, forks=server if forked else None).wait()
    assert (outcome.items, outcome.error) == (1, None)

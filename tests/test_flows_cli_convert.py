"""`penstock convert` at full length: in bounded memory, and killed on the way."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import penstock
from artifacts.files import HALF
from flows.cli.main import main
from flows.machine.launch import DirectLauncher, StageCall, run_with_restarts
from stages.convert.job import ConvertJob
from tests.support.described import spare_processes
from tests.support.pickled import (
    Sentinel,
    bytes_of,
    converted,
    drawn,
    tensors_of,
    write_folder,
    written,
)

MB = 1_000_000
MOMENTS: dict[str, Callable[[Sequence[str], int], bool]] = {
    "before the first file": lambda names, half: not names,
    "in the middle": lambda names, half: len(names) == 4 and half > MB,
    "after the last file": lambda names, half: len(names) == 8,
}
"""When a conversion is killed: the files of weights that are there, and bytes of the one that is
written."""
CONVERT = """
import sys
from flows.console.display import Display
from flows.checkpoint.conversion import convert
from stages.convert.job import ConvertJob
source, folder, size = sys.argv[1:]
job = ConvertJob(source=source, folder=folder, dtype="fp16", shard_bytes=int(size))
convert(job, Display())
"""


def test_the_command_converts_and_says_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spare_processes(monkeypatch)
    source, made = write_folder(tmp_path / "source", drawn()), tmp_path / "made"
    for there in ("", ", 1 of them from before"):
        assert main(["convert", str(source), str(made), "--dtype", "bf16"]) == 0
        said = f"{made}: 6 tensors, 24.6 kB, in 1 file{there}; use it with --model {made}\n"
        assert capsys.readouterr().out == said
    assert tensors_of(made)["layer.0.weight"].dtype == torch.bfloat16


def test_paths_begin_at_home_and_an_unknown_home_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spare_processes(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "source", drawn())
    assert penstock.convert("~/source", "~/made").tensors == 6
    assert (tmp_path / "made" / "config.json").is_file()
    for call in (["~/source", "~nobody-of-this-name/made"], ["~nobody-of-this-name", "~/made"]):
        with pytest.raises(penstock.PenstockError, match="~nobody-of-this-name"):
            penstock.convert(*call)
        assert main(["convert", *call]) == 2
        assert "is not a valid path" in capsys.readouterr().err


@pytest.mark.slow
def test_a_large_pickle_takes_next_to_no_memory(tmp_path: Path) -> None:
    weights = {f"layer.{n}.fc1.weight": torch.randn(20480, 4096) for n in range(3)}
    source = write_folder(tmp_path / "source", weights)
    assert (source / "pytorch_model.bin").stat().st_size > 1000 * MB
    call = StageCall(
        name="convert",
        job=ConvertJob(
            source=str(source), folder=str(tmp_path / "made"), dtype="fp16", shard_bytes=1 << 30
        ),
        device="cpu",
        log=tmp_path / "log",
        budget=96 << 20,  # of what may be written to, above the imports
    )
    outcome = run_with_restarts(DirectLauncher(lambda *_: None), call)
    assert outcome.peak_host_bytes < 400 * MB
    made = tensors_of(tmp_path / "made")
    assert all(torch.equal(made[n], t.to(made[n].dtype)) for n, t in weights.items())


@pytest.mark.slow
def test_a_conversion_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    weights = drawn(8, 4096, 1024)
    source, whole = write_folder(tmp_path / "source", weights), tmp_path / "whole"
    size = weights["layer.0.weight"].nbytes // 2
    assert len(written(converted(source, whole, "fp16", size))) == 8
    for moment, reached in MOMENTS.items():
        made = tmp_path / moment
        kept = _killed(source, made, size, reached)
        before = {name: (made / name).stat().st_mtime_ns for name in kept}
        told = converted(source, made, "fp16", size)
        assert set(written(told)) == set(bytes_of(whole)) - {*kept, *_small(whole)}
        assert all((made / name).stat().st_mtime_ns == when for name, when in before.items())
        assert bytes_of(made) == bytes_of(whole)


def _small(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".safetensors"}


def _killed(
    source: Path, made: Path, size: int, reached: Callable[[Sequence[str], int], bool]
) -> list[str]:
    """Kill a command with SIGKILL once its folder is as `reached` says; returns the files of
    weights that it leaves."""
    running = subprocess.Popen([sys.executable, "-c", CONVERT, str(source), str(made), str(size)])
    while running.poll() is None:
        names = sorted(path.name for path in made.glob("*.safetensors"))
        half = 0
        for path in made.glob(f"{HALF}*"):
            try:
                half = path.stat().st_size
            except FileNotFoundError:
                continue  # it is whole by now
        if made.exists() and reached(names, half):
            break
        time.sleep(0.001)
    running.kill()
    assert running.wait() == -9, "it ended before it was to be killed"
    descriptor = os.open(made, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # until its child, which dies with it, is gone
    os.close(descriptor)
    return sorted(path.name for path in made.glob("*.safetensors"))


def test_the_command_refuses_a_hostile_pickle_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spare_processes(monkeypatch)
    source, ran = write_folder(tmp_path / "source", {}), tmp_path / "ran"
    torch.save({**drawn(), "x": Sentinel(ran)}, source / "pytorch_model.bin")
    assert main(["convert", str(source), str(tmp_path / "made")]) == 2
    shown = capsys.readouterr()
    assert "refused, because such a pickle can run code" in shown.err
    assert len(shown.err.splitlines()) == 1 and shown.out == ""
    assert not ran.exists()

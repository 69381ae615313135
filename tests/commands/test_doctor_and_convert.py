"""`penstock convert` in bounded memory, and what `penstock doctor` says of a machine."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import penstock
from artifacts.records.store import open_store
from flows.commands.doctor.doctor_command import _device, _memory, lines
from flows.core.checkpoint.graphs import missing_libraries
from flows.core.machine.launch import DirectLauncher, StageCall, run_with_restarts
from flows.interfaces.cli.main import main
from stages.convert import ConvertJob
from stages.process.checks import PASSES, Verdicts
from tests.support import gpus
from tests.support.described import spare_processes
from tests.support.fake_gpu.state import Machine
from tests.support.pickled import drawn, tensors_of, write_folder

MB = 1_000_000
LARGER = "NVIDIA GeForce RTX 4090 with 25.8 GB: select it by CUDA_VISIBLE_DEVICES=1"


def test_the_command_converts_and_says_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spare_processes(monkeypatch)
    source, made = write_folder(tmp_path / "source", drawn()), tmp_path / "made"
    for there in ("", ", 1 of them from before"):
        assert main(["convert", str(source), str(made), "--dtype", "bf16"]) == 0
        text = f"{made}: 6 tensors, 24.6 kB, in 1 file{there}; use it with --model {made}\n"
        assert capsys.readouterr().out == text
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
    """Less than the 2 GiB of data that a shell may allow it (`ulimit -d`): its budget is the same
    limit."""
    weights = {f"layer.{n}.fc1.weight": mapped(tmp_path / f"{n}", 16384, 16384) for n in range(3)}
    source = str(write_folder(tmp_path / "source", weights))
    assert Path(source, "pytorch_model.bin").stat().st_size > 3000 * MB
    folder = str(tmp_path / "made")
    job = ConvertJob(source=source, folder=folder, dtype="fp16", shard_bytes=1 << 30)
    budget = 96 << 20  # of what may be written to, above the imports
    call = StageCall(name="convert", job=job, device="cpu", log=tmp_path / "log", budget=budget)
    outcome = run_with_restarts(DirectLauncher(lambda *_: None), call)
    assert outcome.peak_host_bytes < 400 * MB
    for path in (tmp_path / "made").glob("*.safetensors"):
        with safe_open(path, "pt") as made:
            for name in made.keys():  # noqa: SIM118 (no mapping)
                found = made.get_slice(name)
                assert torch.equal(found[::4095], weights.pop(name)[::4095].half())
    assert not weights


def mapped(path: Path, rows: int, columns: int) -> torch.Tensor:
    """A matrix in a file, of zeros but for every 4095th row."""
    found = torch.from_file(str(path), shared=True, size=rows * columns).reshape(rows, columns)
    found[::4095] = torch.randn(len(found[::4095]), columns)
    return found


def test_a_limit_around_the_process_is_told(tmp_path: Path) -> None:
    proc, system = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/job\n")
    (system / "job").mkdir(parents=True)
    assert _memory(proc, system) == "61.4 GB of 65.5 GB free"
    (system / "job" / "memory.max").write_text("8000000000\n")
    (system / "job" / "memory.current").write_text("3000000000\n")
    assert _memory(proc, system).startswith("5.0 GB of 8.0 GB free: the limit of this control")


def test_doctor_names_device_memory_store_and_a_server_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://me:secret@127.0.0.1:9/api")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("device ", "memory ", "store ", "torch", "prefect ", "does not respond"):
        assert word in shown
    assert "secret" not in shown
    assert "tensorrt" not in shown, "no driver responds"


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        (gpus.plain, "NVIDIA GeForce RTX 3070, driver "),
        (gpus.turing, "not supported by this GPU: such checkpoints run in fp16"),
        (gpus.wsl2, "its driver may use host memory when the GPU's is full"),
        (gpus.two_unlike_cards, LARGER),
        (gpus.no_process_list, "share it with containers by PENSTOCK_LOCKS=FOLDER"),
    ],
)
def test_a_gpu_is_told_with_what_it_lacks(
    machine: Callable[[], Machine], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.see(machine(), tmp_path / "gpu", monkeypatch)
    assert says in "\n".join(_device("cuda:0"))
    (line,) = (line for line in lines("cuda:0", open_store(str(tmp_path))) if "tensorrt  " in line)
    assert all(name in line for name in missing_libraries())


def test_checks_of_this_hardware_are_listed_with_their_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))
    gpus.see(gpus.plain(), tmp_path / "gpu", monkeypatch)

    def listed() -> list[str]:
        return [line for line in lines("cuda:0", store) if line.startswith("checks ")]

    assert listed() == []
    for at, text in enumerate(("a half gives the same", "a GPU computes")):
        monkeypatch.setattr(time, "time", partial(float, 60 * at))
        Verdicts(store, "cuda:0").keep(PASSES, {"what": text}, {"holds": True}, text)
    monkeypatch.setattr(time, "time", lambda: 7500.0)
    assert listed() == [
        "checks     a half gives the same (2 h 05 min ago)",
        "checks     a GPU computes (2 h 04 min ago)",
    ]
    gpus.see(gpus.plain(driver_version="999.1"), tmp_path / "gpu", monkeypatch)
    (line,) = listed()
    assert "2 results of other hardware, drivers or versions do not count here" in line


def test_a_store_that_cannot_be_written_is_named_after_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("PENSTOCK_STORE", str(blocked / "store"))
    assert main(["doctor"]) == 5
    printed = capsys.readouterr()
    assert "\nstore " in printed.out
    assert "PENSTOCK_STORE" in printed.err and "--out" not in printed.err

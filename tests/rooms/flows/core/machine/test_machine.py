"""The memory that a run may take, notes on other processes, and how a running job is recognized:
by its lock, or by its lease if there is no lock."""

import errno
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from artifacts.records.store import FolderStore
from artifacts.records.stores.local import clock_of
from flows.commands.cache.clean import collect
from flows.commands.shared.arguments import config_of
from flows.commands.shared.parser import parse
from flows.core.machine import budget as module
from flows.core.machine import leases
from flows.core.machine.budget import Budget, WithinBudget, budget_for
from flows.core.machine.launch import StageCall, StageHandle
from flows.core.machine.leases import leased, running_jobs
from flows.core.machine.processes import is_alive
from flows.core.options.commands import CaptionConfig, RebuildConfig, RunOptions
from tests.support.builders.jobs import made_job
from tests.support.faults import failing
from tests.support.holders import held_elsewhere
from tests.support.started import until

GIB = 1 << 30


def config(**options: Any) -> CaptionConfig:
    return CaptionConfig(sources=("a",), **options)


def machine(monkeypatch: pytest.MonkeyPatch, *, host: int, gpu: int = 0) -> None:
    monkeypatch.setattr(module, "host_free_bytes", lambda: host * GIB)
    monkeypatch.setattr(module, "device_memory", lambda _: (gpu * GIB, 24 * GIB))
    monkeypatch.setattr(module, "device_holders", lambda _: {os.getpid(): 1, 1: 3 * GIB})


def test_unasked_a_cpu_gives_four_fifths_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, host=10)
    found = budget_for(config(), "cpu")
    assert (found.bytes, found.free_bytes, found.host_bytes) == (8 * GIB, 10 * GIB, 10 * GIB)
    assert not found.given and not found.warning
    assert found.total_bytes >= GIB


def test_unasked_a_gpu_gives_all_but_a_twentieth(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, host=10, gpu=20)
    found = budget_for(config(), "cuda:0")
    assert (found.bytes, found.total_bytes, found.host_bytes) == (19 * GIB, 24 * GIB, 10 * GIB)
    (name,) = found.others
    assert name.startswith("process 1 (") and found.others[name] == 3 * GIB
    assert (found.of_stage("cuda:0"), found.of_stage("cpu")) == (19 * GIB, 0)


def test_who_stands_in_the_way_of_a_budget_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, host=10, gpu=20)
    assert not budget_for(config(memory=16 * GIB), "cuda:0").warning
    found = budget_for(config(memory=22 * GIB), "cuda:0")
    assert found.bytes == 22 * GIB and found.given
    assert "process 1 (" in found.warning and "\n" not in found.warning
    assert "of the host are free" in budget_for(config(memory=11 * GIB), "cpu").warning


def test_other_processes_of_the_host_are_found() -> None:
    held = bytearray(100 << 20)
    held[::4096] = b"x" * len(held[::4096])
    found = module.host_holders()
    assert found[os.getpid()] >= len(held)
    assert not any(f"process {os.getpid()} " in name for name in module.name_holders(found))
    assert module.own_bytes() == 0 or module.own_bytes() < sum(found.values())


def stage_call(name: str, device: str, **more: Any) -> StageCall:
    return StageCall(name=name, job=made_job(), device=device, log=Path("log"), **more)


class Started:
    """Keeps what it was asked to start."""

    def __init__(self) -> None:
        self.calls: list[StageCall] = []

    def start(self, call: StageCall) -> StageHandle:
        self.calls.append(call)
        return None  # type: ignore[return-value]


def run_of(free_gib: list[float], memory: int | None = None) -> tuple[list[float], list[str]]:
    """Budgets in GiB with which stages are started while so much is free, and what is told."""

    def look(request: RunOptions, device: str) -> Budget:
        free = int(free_gib.pop(0) * GIB)
        found = memory if memory is not None else free * 4 // 5
        return Budget(
            device=device,
            bytes=found,
            given=memory is not None,
            free_bytes=free,
            total_bytes=32 * GIB,
            host_bytes=free,
            others={"process 7 (blender)": 3 * GIB},
        )

    started, message = Started(), list[str]()
    request = config(memory=memory)
    before = look(request, "cuda:0")
    launcher = WithinBudget(started, before, request, message.append, look)
    while free_gib:
        launcher.start(stage_call("encode", "cuda:0", budget=before.of_stage("cuda:0")))
    return [call.budget / GIB for call in started.calls], message


def test_a_stage_takes_less_when_others_have_taken_it_and_says_so_once() -> None:
    budgets, message = run_of([10, 10, 9, 5, 5, 10, 5])
    assert budgets == [8, 8, 4, 4, 8, 4]
    assert len(message) == 2 and all("process 7 (blender)" in text for text in message)


def test_a_given_budget_stays_and_a_lack_is_told_once() -> None:
    budgets, message = run_of([10, 10, 5, 5, 10, 5], memory=8 * GIB)
    assert budgets == [8] * 5
    assert len(message) == 2 and "--memory allows" in message[0]


def test_a_process_with_a_share_of_the_gpu_keeps_it() -> None:
    started = Started()
    found = budget_for(config(memory=8 * GIB), "cuda:0")
    call = stage_call("encode", "cuda:0", budget=3 * GIB, beside=True)
    WithinBudget(started, found, config(memory=8 * GIB), print).start(call)
    assert started.calls == [call]


def test_a_stage_of_the_host_is_left_alone_in_a_run_on_a_gpu() -> None:
    started = Started()
    found = budget_for(config(), "cuda:0")
    call = stage_call("frames", "cpu")
    WithinBudget(started, found, config(), print).start(call)
    assert started.calls == [call]


@pytest.mark.parametrize("words", [["caption"], ["plan"], ["cache", "rebuild"]])
def test_memory_is_understood_as_sizes_are_everywhere(words: list[str]) -> None:
    kind = RebuildConfig if words[0] == "cache" else CaptionConfig
    assert config_of(parse([*words, "a", "--memory", "1.5GiB"]), kind).memory == 3 * GIB // 2
    assert config_of(parse([*words, "a"]), kind).memory is None
    with pytest.raises(UsageError, match="is not a size"):
        config_of(parse([*words, "a", "--memory", "8 apples"]), kind)


HELD, FREE = "aa" * 32, "bb" * 32


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def holder(store: FolderStore) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the namespace HELD."""
    with held_elsewhere(store, HELD) as process:
        yield process


def test_a_claim_ends_with_its_block_and_does_not_count_against_itself(store: FolderStore) -> None:
    store.check_writable()
    with leased(store, [HELD], Path("one"), ["a"]) as mine:
        assert mine.needed_elsewhere(HELD, ["a"]) == set()
        with leased(store, [HELD, FREE], Path("two"), ["a", "b"]) as other:
            assert mine.needed_elsewhere(HELD, ["a", "c"]) == {"a"}
            assert other.needed_elsewhere(HELD, ["a", "b"]) == {"a"}
            assert other.needed_elsewhere(FREE, ["a", "b"]) == set()
        assert mine.needed_elsewhere(HELD, ["a"]) == set()
    assert running_jobs(store) == []


def test_a_claim_needs_the_media_that_it_names_and_without_any_all(store: FolderStore) -> None:
    store.check_writable()
    media = [f"{at:064x}" for at in range(1000)]
    requests = [*media[::7], "ff" * 32]
    with leased(store, [HELD], Path("mine")) as mine:
        for named, needed in ((media[::2], media[::14]), ([], []), (None, requests)):
            with leased(store, [HELD], Path("theirs"), named):
                assert sorted(mine.needed_elsewhere(HELD, requests)) == sorted(needed)


def test_a_claim_whose_media_are_cut_needs_all(store: FolderStore) -> None:
    store.check_writable()
    with leased(store, [HELD], Path("mine")) as mine:
        before = {*(store.local / "jobs").iterdir()}
        with leased(store, [HELD], Path("theirs"), ["a", "b"]):
            (path,) = {*(store.local / "jobs").iterdir()} - before
            whole = path.read_bytes()
            for length in (len(whole) - 1, len(whole) - 2, whole.index(b"\n") + 1):
                path.write_bytes(whole[:length])
                assert mine.needed_elsewhere(HELD, ["a", "c"]) == {"a", "c"}
            path.write_bytes(whole)
            assert mine.needed_elsewhere(HELD, ["a", "c"]) == {"a"}


def test_a_mount_that_locks_nothing_can_hold_a_job(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS))
    with leased(store, [HELD], tmp_path):
        assert [job.namespaces for job in running_jobs(store)] == [{HELD}]
    assert running_jobs(store) == []


def test_a_dead_claim_ends_where_no_lock_tells(
    store: FolderStore, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = (store.local / "jobs").iterdir()
    for code in (errno.ENOSYS, errno.EBADF, errno.ENOLCK):
        monkeypatch.setattr(fcntl, "flock", failing(code))
        assert len(running_jobs(store)) == 1
    holder.kill()
    holder.wait()
    assert running_jobs(store) == [] and not path.exists()


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize(("age", "running"), [(600, 1), (86400, 0)])
def test_another_machine_s_claim_is_a_lease(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, age: int, running: int, locks: bool
) -> None:
    path = store.local / "jobs" / "one.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"host": "elsewhere", "namespaces": [HELD]}))
    when = clock_of(store.local) - age
    os.utime(path, (when, when))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 90 * 86400)  # ours is far behind
    if not locks:
        monkeypatch.setattr(fcntl, "flock", failing(errno.EBADF))
    assert [job.namespaces for job in running_jobs(store)] == [{HELD}] * running
    assert path.exists() == bool(running)


def test_a_lock_is_asked_for_on_a_file_that_may_be_written(
    store: FolderStore, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_only_read(descriptor: int, _: int) -> bool:
        return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY

    as_nfs = failing(errno.EBADF, fcntl.flock, is_only_read)
    monkeypatch.setattr(fcntl, "flock", as_nfs)
    assert len(running_jobs(store)) == 1
    holder.kill()
    holder.wait()
    assert running_jobs(store) == []


@pytest.mark.parametrize(
    "text",
    [b"\xff\xfe", b"[1]", b"5", b'{"namespaces": 5}', b'{"namespaces": [[]]}', b"[" * 100_000, b""],
)
def test_a_claim_that_is_none_stops_nobody(store: FolderStore, text: bytes) -> None:
    path = store.local / "jobs" / "odd.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    os.mkfifo(path.with_name("pipe.json"))
    path.with_name("folder.json").mkdir()
    collect(store, 0, dry_run=False)
    assert running_jobs(store) == []


def test_a_job_shows_that_it_lives(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.01)
    with leased(store, [HELD], tmp_path):
        (path,) = (store.local / "jobs").iterdir()
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_a_process_that_was_killed_is_gone_before_its_parent_looks() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert is_alive(process.pid) and is_alive(os.getpid())
        process.kill()
        until(lambda: not is_alive(process.pid))
        assert os.path.exists(f"/proc/{process.pid}"), "nobody has waited for it"
    assert not is_alive(process.pid)

"""The processes of one stage on several GPUs: how they end, and what one does to the others."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import CannotFit, Killed, ModelChanged, PenstockError, StageDied
from artifacts.records.claims import Share, can_claim, claims_at
from artifacts.records.packs import RecordSet
from artifacts.records.store import Store, open_store, prepare_store
from flows.core.machine.fan_out import FanOutLauncher, StageOnGpus, joined, on_device, shared_by
from flows.core.machine.launch import StageCall, StageHandle
from stages.decode.generation import DecodeItem, DecodeJob
from stages.models.half_job import HalfJob
from stages.process.events import WAITS_FOR_DEVICE, StageOutcome

FULL, CUT = CannotFit("out of memory"), Killed("killed by signal 9")
LOST = StageDied("the GPU has fallen off the bus")


@dataclass(kw_only=True)
class Process:
    """A process that runs until a test stops it."""

    items: int = 0
    error: PenstockError | None = None
    runs: bool = False
    waits: bool = False
    """For its GPU."""
    stop_seconds: float = 0.0
    stopped: bool = False
    outcome: StageOutcome = field(init=False)

    def __post_init__(self) -> None:
        notes = {WAITS_FOR_DEVICE: True} if self.waits else {}
        self.outcome = StageOutcome(name="decode", items=self.items, notes=notes)

    def wait(self) -> StageOutcome:
        if self.error is not None:
            raise self.error
        return self.outcome

    def wait_for_exit(self, seconds: float) -> bool:
        if self.runs:
            time.sleep(max(0.0, seconds))
        return not self.runs

    def stop(self) -> None:
        time.sleep(self.stop_seconds)
        self.stopped, self.runs = True, False


def stage(*processes: Process, share: Path | None = None) -> tuple[StageOnGpus, list[str]]:
    """A stage on so many GPUs, and those that were left out."""
    running: Mapping[str, StageHandle] = {f"cuda:{n}": p for n, p in enumerate(processes)}
    left: list[str] = []
    return StageOnGpus(running, share, lambda _, device, __: left.append(device)), left


@pytest.mark.parametrize(("error", "left_out"), [(FULL, True), (LOST, True), (CUT, False)])
def test_a_gpu_that_fails_alone_is_left_out_unless_its_process_was_killed(
    error: PenstockError, left_out: bool
) -> None:
    running, left = stage(Process(items=5), Process(items=2, error=error))
    assert running.wait().items == 7
    assert left == (["cuda:1"] if left_out else [])


@pytest.mark.parametrize(
    ("errors", "raised"),
    [((CUT, FULL), FULL), ((LOST, FULL), FULL), ((CUT, LOST), LOST), ((CUT, CUT), CUT)],
)
def test_if_all_fail_the_most_telling_error_is_raised_and_no_gpu_is_left_out(
    errors: tuple[PenstockError, PenstockError], raised: PenstockError
) -> None:
    running, left = stage(*(Process(error=error) for error in errors))
    with pytest.raises(type(raised)):
        running.wait()
    assert not left


def test_an_error_of_the_work_itself_ends_all() -> None:
    other = Process(items=1, runs=True)
    running, _ = stage(Process(error=ModelChanged("the checkpoint changed")), other)
    with pytest.raises(ModelChanged):
        running.wait()
    assert other.stopped


def test_who_waits_for_a_gpu_is_stopped_when_nothing_is_left() -> None:
    waiting = Process(runs=True, waits=True)
    running, left = stage(Process(items=9), waiting)
    assert running.wait().items == 9
    assert waiting.stopped and not left


def test_who_has_made_something_is_waited_for() -> None:
    late = Process(items=3, runs=True)
    running, _ = stage(Process(items=9), late)
    assert not running.wait_for_exit(0.2)
    late.runs = False
    assert running.wait().items == 12 and not late.stopped


def test_all_are_stopped_at_the_same_time() -> None:
    slow = [Process(runs=True, stop_seconds=0.4) for _ in range(4)]
    running, _ = stage(*slow)
    began = time.monotonic()
    running.stop()
    assert all(each.stopped for each in slow)
    assert time.monotonic() - began < 4 * 0.4


@pytest.mark.parametrize(
    ("other", "lifted"),
    [
        (Process(runs=True), False),
        (Process(runs=True, items=1), True),
        (Process(runs=True, waits=True), True),
        (Process(error=CUT), True),
    ],
)
def test_the_limit_of_claims_is_lifted_when_the_others_work_or_wait_or_ended(
    other: Process, lifted: bool, tmp_path: Path
) -> None:
    share = tmp_path / "decode.share"
    share.touch()
    running, _ = stage(Process(items=1, runs=True), other, share=share)
    running.wait_for_exit(0.2)
    assert share.exists() != lifted
    running.stop()
    assert not share.exists()


def test_outcomes_are_summed_or_the_largest() -> None:
    one, other = {"loaded_bytes": 3}, {WAITS_FOR_DEVICE: "process 5"}
    of = partial(StageOutcome, name="encode")
    parts = {
        "cuda:0": of(items=3, tokens=5, seconds=4.0, peak_device_bytes=7, notes=one),
        "cuda:1": of(items=2, tokens=1, seconds=6.0, peak_device_bytes=5, notes=other),
    }
    whole = joined(parts)
    assert (whole.items, whole.tokens, whole.seconds, whole.peak_device_bytes) == (5, 6, 6.0, 7)
    assert whole.notes == one and whole.devices == parts


class Starts:
    """A launcher of processes that have ended."""

    def __init__(self, make: Callable[[StageCall], Process]) -> None:
        self.calls: list[StageCall] = []
        self._make = make

    def start(self, call: StageCall) -> Process:
        self.calls.append(call)
        return self._make(call)


def decode_call(folder: Path, batches: int = 4) -> StageCall:
    items = [[DecodeItem(f"{at}", f"{at}", "?")] for at in range(batches)]
    given: dict[str, Any] = {"features_namespace": "f", "namespace": "c", "engine": "inflight"}
    given |= {"half": HalfJob(model="m", device="cuda:0"), "max_new_tokens": 8}
    job = DecodeJob(store=str(folder), batches=items, **given)
    return StageCall(name="decode", job=job, device="cuda:0", log=folder / "logs" / "decode.log")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = open_store(str(tmp_path / "store"))
    prepare_store(opened)
    return opened


def test_copies_have_devices_logs_and_the_same_batches(tmp_path: Path, store: Store) -> None:
    cards = ["cuda:0", "cuda:1", "cuda:3"]
    call = shared_by(decode_call(tmp_path), cards, store)
    calls = (call, *call.copies)
    assert [each.device for each in calls] == cards
    assert len({each.log for each in calls}) == 3
    for each in calls:
        assert isinstance(each.job, DecodeJob) and each.job.half.device == each.device
        assert len(each.job.batches) == 4 and each.job.share.items == 2


def test_without_byte_locks_batches_are_divided_by_place(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artifacts.records.claims.lock_byte", lambda *_: True)  # grants every claim
    assert not can_claim(store)
    call = shared_by(decode_call(tmp_path, batches=5), ["cuda:0", "cuda:1"], store)
    parts = [
        [item.key for batch in each.job.batches for item in batch]
        for each in (call, *call.copies)
        if isinstance(each.job, DecodeJob)
    ]
    assert parts == [["0", "2", "4"], ["1", "3"]] and not call.share_file
    (single,) = decode_call(tmp_path, batches=1).job.batches  # type: ignore[attr-defined]
    assert shared_by(decode_call(tmp_path, batches=1), ["cuda:0", "cuda:1"], store).copies == ()
    assert len(single) == 1


def test_a_gpu_that_was_left_out_gets_no_further_stage(tmp_path: Path, store: Store) -> None:
    printed: list[str] = []
    starts = Starts(lambda call: Process(error=LOST if call.device == "cuda:0" else None, items=1))
    launcher = FanOutLauncher(starts, {"cuda:0": starts, "cuda:1": starts}, printed.append)
    launcher.start(shared_by(decode_call(tmp_path), ["cuda:0", "cuda:1"], store)).wait()
    assert len(printed) == 1 and "cuda:0" in printed[0] and "fallen off the bus" in printed[0]
    launcher.start(shared_by(decode_call(tmp_path), ["cuda:0", "cuda:1"], store)).wait()
    launcher.start(decode_call(tmp_path)).wait()  # which runs on one GPU alone
    assert [call.device for call in starts.calls] == ["cuda:0", "cuda:1", "cuda:1", "cuda:1"]
    assert [call.title for call in starts.calls][:2] == ["decode cuda:0", "decode cuda:1"]


def test_a_stage_that_starts_on_one_gpu_and_not_on_the_next_is_stopped(
    tmp_path: Path, store: Store
) -> None:
    first = Process(runs=True)

    def make(call: StageCall) -> Process:
        if call.device == "cuda:1":
            raise StageDied("no more processes")
        return first

    starts = Starts(make)
    launcher = FanOutLauncher(starts, {"cuda:0": starts, "cuda:1": starts}, print)
    with pytest.raises(StageDied):
        launcher.start(shared_by(decode_call(tmp_path), ["cuda:0", "cuda:1"], store))
    assert first.stopped


def test_a_call_for_the_cpu_stays_there(tmp_path: Path) -> None:
    call = StageCall(name="frames", job=decode_call(tmp_path).job, device="cpu", log=tmp_path / "f")
    assert on_device(call, "cuda:1") is call


def test_a_process_claims_its_share_until_the_limit_is_lifted(store: Store, tmp_path: Path) -> None:
    limit = tmp_path / "limit"
    limit.touch()
    made = RecordSet(store, "captions", "n")
    with claims_at(store, made, share=Share(file=str(limit), items=3)) as turns:
        batches = turns.claimed_batches([["a", "b"], ["c", "d"], ["e", "f"]], lambda batch: batch)
        assert [next(batches), next(batches)] == [["a", "b"], ["c", "d"]]
        later: list[list[str]] = []
        thread = threading.Thread(target=lambda: later.append(next(batches)))
        thread.start()
        thread.join(0.5)
        assert not later, "more than its share was claimed"
        limit.unlink()
        thread.join(10)
        assert later == [["e", "f"]]

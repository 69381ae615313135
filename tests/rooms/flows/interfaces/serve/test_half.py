"""Requests that do not fit, that nobody reads yet, or that are taken back."""

import asyncio
import errno
import os
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NamedTuple, cast

import pytest

from artifacts.disk.locks import try_hold
from artifacts.errors import EnvironmentFault, OutOfMemory, StageDied
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from flows.core.machine.launch import StageCall
from flows.core.plan.ladder import Ladder, Remembered, Rung, sizes
from flows.interfaces.serve import record_cache, startup
from flows.interfaces.serve.device_scheduler import DeviceScheduler
from flows.interfaces.serve.half_worker import HalfWorker, HalfWorkerSpec
from flows.interfaces.serve.listening import UnsignalledServer
from flows.interfaces.serve.metrics import Metrics
from flows.interfaces.serve.record_cache import RecordCache, RecordCacheFlusher
from flows.interfaces.serve.refusals import HttpRefusal
from flows.interfaces.serve.temp_store import TempStore
from flows.interfaces.serve.worker_process import WorkerProcess
from stages.process.device import CPU_LOCK
from stages.process.events import Answered, BatchShrunk, StageNotes, StageOutcome, TooLarge
from stages.process.job import job_fields
from stages.process.requests import Make, Withdraw, read_messages
from stages.process.stage_process import Listener
from tests.support.builders.jobs import made_job
from tests.support.on_a_loop import on_a_loop

GIANT = "giant"
"""A work that fits nowhere."""


class Work(NamedTuple):
    """What such a half is asked for."""

    key: str
    text: str = ""


def asked(key: str, text: str = "") -> Make:
    return Make(batches=[[Work(key, text)]])


def batches_sent(pipe: str) -> Iterator[list[str]]:
    """The keys of each batch that is sent over a pipe."""
    for message in read_messages(pipe):
        assert isinstance(message, Make)
        yield from ([key for key, _ in batch] for batch in message.batches)


@dataclass(kw_only=True)
class CrowdedHalf:
    """A launcher, and the process that it starts: the last work of a batch does not fit beside the
    others, nor what comes at first after them, before what they took is given back."""

    listen: Listener
    batches: list[list[str]]
    """Keys of each batch that it was told."""
    pipe: str = ""
    dirty: bool = False
    """Whether it still has what the batch before took."""

    def start(self, call: StageCall) -> "CrowdedHalf":
        self.pipe = job_fields(call.job)["requests"]
        return self

    def wait(self) -> StageOutcome:
        self.listen("embed", StageNotes({"ready": True}))
        for keys in batches_sent(self.pipe):
            self.batches.append(keys)
            crowded = self.dirty or len(keys) > 1
            large = {GIANT, keys[-1]} if crowded else {GIANT}
            self.listen("embed", Answered(keys=tuple(key for key in keys if key not in large)))
            for key in large.intersection(keys):
                self.listen("embed", TooLarge(key=key, wanted_bytes=0, error="out of memory"))
            self.dirty = len(keys) > 1
        return StageOutcome(name="embed")

    def stop(self) -> None: ...


def call_of(name: str, pipe: str, folder: Path) -> StageCall:
    return StageCall(name=name, job=made_job(requests=pipe), device="cpu", log=folder / "log")


SETTINGS = {"max_batch": 0, "item_weight": 1, "wait_seconds": 0.0, "idle_seconds": 60.0}
SETTINGS |= {"deadline": 30.0}


def half_of(
    folder: Path, start: Callable[[Listener], Any], metrics: Metrics | None = None, **settings: Any
) -> HalfWorker:
    """A half whose process is what this starts."""
    rungs = {"embed": [Rung(stage="embed", batch=size) for size in sizes(8)]}
    remembered = Remembered(open_store(str(folder / "store")), {"embed": 0}, 1)
    plan = HalfWorkerSpec(
        name="embed",
        ladder=Ladder(rungs, remembered, budget_bytes=1, on_move=lambda entry, text: None),
        peak_bytes=lambda rung: 1,
        call=lambda rung, pipe, room: call_of("embed", pipe, folder),
        answers=lambda keys: {key: f"made {key}" for key in keys},
        **{**SETTINGS, **settings},
    )
    return HalfWorker(
        plan, DeviceScheduler("cpu", 1, print), start, TempStore(folder), metrics or Metrics()
    )


def answer_to(
    folder: Path,
    keys: Sequence[str],
    kind: Callable[..., Any] = CrowdedHalf,
    metrics: Metrics | None = None,
) -> tuple[list[str], list[list[str]], int]:
    """Send these requests to a half at once. Return their answers, the batches it received, and
    the size that the next batch may have."""
    batches: list[list[str]] = []

    async def go() -> tuple[list[str], int]:
        half = half_of(folder, lambda listen: kind(listen=listen, batches=batches), metrics)
        running = asyncio.create_task(half.run())
        works = [half.submit(key, Work(key), 1) for key in keys]
        found = await asyncio.wait_for(asyncio.gather(*works, return_exceptions=True), 30)
        half.close()
        await asyncio.wait_for(running, 30)
        assert half.batches.idle and not half.batches.waiting
        texts = [str(each.status) if isinstance(each, HttpRefusal) else str(each) for each in found]
        return texts, half.batches.max_size

    found, most = asyncio.run(go())
    return found, batches, most


@dataclass(kw_only=True)
class HangingHalf(CrowdedHalf):
    """A launcher, and its process: the first one stands still when it is given work."""

    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def wait(self) -> StageOutcome:
        if self.batches:
            return super().wait()
        self.process = subprocess.Popen(["sleep", "600"])
        self.listen("embed", StageNotes({"ready": True}))
        self.batches.append(next(batches_sent(self.pipe)))
        raise StageDied("killed", hint="", return_code=self.process.wait())


def test_a_process_that_hangs_is_not_ready_then_killed_and_its_requests_made_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.interfaces.serve.half_worker.PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr("flows.interfaces.serve.half_worker.LOOK_SECONDS", 0.1)
    batches: list[list[str]] = []

    async def go() -> None:
        half = half_of(
            tmp_path, lambda listen: HangingHalf(listen=listen, batches=batches), deadline=0.5
        )
        running = asyncio.create_task(half.run())
        answer = asyncio.create_task(half.submit("a", Work("a"), 1))
        while not half.is_silent:
            await asyncio.sleep(0.05)
        assert await asyncio.wait_for(answer, 30) == "made a"
        half.close()
        await asyncio.wait_for(running, 30)

    asyncio.run(go())
    assert batches == [["a"], ["a"]]


def test_what_does_not_fit_is_made_alone_or_refused_and_others_are_answered(tmp_path: Path) -> None:
    found, batches, _ = answer_to(tmp_path, "abcd")
    assert found == ["made a", "made b", "made c", "made d"]
    assert batches == [["a", "b", "c", "d"], ["d"], ["d"]], "at first it found what others left"
    found, batches, _ = answer_to(tmp_path, [GIANT, "a", "b"])
    assert found == ["422", "made a", "made b"]
    assert batches.count([GIANT]) == 2
    assert answer_to(tmp_path, [GIANT])[0] == ["422"]


def test_a_lock_failing_once_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CPU_LOCK, str(tmp_path / "lock"))
    faults = iter([OSError(errno.EIO, "a fault"), EnvironmentFault("no lock")])

    def faulty(path: Path) -> IO[str] | None:
        if (fault := next(faults, None)) is not None:
            raise fault
        return try_hold(path)

    monkeypatch.setattr("flows.interfaces.serve.device_scheduler.try_hold", faulty)
    assert answer_to(tmp_path, "ab")[0] == ["made a", "made b"]


@pytest.mark.slow
@pytest.mark.logs_errors
def test_tasks_go_on_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_cache, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(record_cache, "REFRESH_SECONDS", 0.0)
    faults = {name: iter([OSError(errno.EIO, "a fault")]) for name in ("save", "refresh", "_step")}
    for kind in (RecordCache, HalfWorker):
        for name in faults:
            if (real := getattr(kind, name, None)) is not None:
                monkeypatch.setattr(kind, name, failing_once(real, faults[name]))
    store, text = open_store(str(tmp_path / "store")), list[str]()
    keeper = RecordCacheFlusher(text.append)
    kept = keeper.of(store, "captions", "a" * 64)
    half = half_of(tmp_path, lambda listen: CrowdedHalf(listen=listen, batches=[]))
    counts = {"queued": 0, "budget_bytes": 1, "seconds_left": 5.0}
    service: Any = SimpleNamespace(
        halves=[half], decoders=[], metrics=Metrics(), drain=lambda: None, **counts
    )

    async def go() -> None:
        async with startup._running(service, keeper):
            kept.keep([Record(key="lost")])
            assert await asyncio.wait_for(half.submit("a", Work("a"), 1), 20) == "made a"
            while "lost" in kept.unsaved:
                await asyncio.sleep(0.1)
            kept.keep([Record(key="stored")])
            await asyncio.sleep(4.0)
            assert not kept.unsaved, "nothing stores results any more"

    asyncio.run(asyncio.wait_for(go(), 60))
    assert len(text) == 1 and "a fault" in text[0]
    stored = RecordSet(store, "captions", "a" * 64)
    assert "stored" in stored and not [*faults["refresh"], *faults["_step"]]


def failing_once(real: Callable[..., Any], faults: Iterator[Exception]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if (fault := next(faults, None)) is not None:
            raise fault
        return real(*arguments)

    return call


class TightHalf(CrowdedHalf):
    """A process that fits two works at once, and makes its batches smaller."""

    def wait(self) -> StageOutcome:
        self.listen("embed", StageNotes({"ready": True}))
        for keys in batches_sent(self.pipe):
            self.batches.append(keys)
            if len(keys) > 2:
                self.too_large(len(keys))
            self.listen("embed", Answered(keys=tuple(self.batches[-1])))
        return StageOutcome(name="embed")

    def too_large(self, failed: int) -> None:
        self.listen("embed", BatchShrunk(batch=2, failed=failed, error="out of memory"))


class EndingHalf(TightHalf):
    """One that ends instead."""

    def too_large(self, failed: int) -> None:
        raise OutOfMemory("out of memory")


@pytest.mark.parametrize(
    ("kind", "sizes"), [(TightHalf, [(8, 2)]), (EndingHalf, [(8, 4), (4, 2), (2, 2)])]
)
def test_where_memory_runs_out_batches_become_smaller_and_all_are_answered(
    tmp_path: Path, kind: type[TightHalf], sizes: list[tuple[int, int]]
) -> None:
    for before, after in sizes:  # what a process ended of is remembered
        metrics = Metrics()
        found, batches, most = answer_to(tmp_path, "abcdefgh", kind, metrics)
        assert found == [f"made {key}" for key in "abcdefgh"]
        assert (max(map(len, batches)), most) == (before, after)
        ended = 'penstock_restarts_total{half="embed",why="memory"} 1' in metrics.text().decode()
        assert ended == (kind is EndingHalf and before > 2)


class BusyHalf:
    """A launcher, and the process that it starts: it reads when it is let, makes what it is told
    but what it is to keep, and dies when it is told to."""

    pid = 0

    def __init__(self, keeps: Sequence[str] = ()) -> None:
        self.keeps = keeps
        self.reads, self.dies = threading.Event(), threading.Event()
        self.lines: list[Any] = []
        self.pipe = ""

    def __call__(self, listen: Listener) -> "BusyHalf":
        self.listen = listen
        return self

    def start(self, call: StageCall) -> "BusyHalf":
        self.pipe = job_fields(call.job)["requests"]
        return self

    def wait(self) -> StageOutcome:
        self.listen("embed", StageNotes({"ready": True}))
        while not self.reads.wait(0.01):
            if self.dies.is_set():
                raise StageDied("killed", hint="", return_code=-9)
        for message in read_messages(self.pipe):
            self.lines.append(message)
            if isinstance(message, Make):
                keys = [key for key, _ in message.batches[0] if key not in self.keeps]
                if keys:
                    self.listen("embed", Answered(keys=tuple(keys)))
        return StageOutcome(name="embed")

    def stop(self) -> None: ...


LARGE = "\N{WATER WAVE}" * 20_000
"""A prompt that is 240 KB in JSON, and a pipe holds 64."""


@pytest.mark.logs_errors
def test_an_event_that_cannot_be_handled_keeps_no_request_waiting(tmp_path: Path) -> None:
    batches: list[list[str]] = []

    async def go() -> list[str]:
        half = half_of(tmp_path, lambda listen: CrowdedHalf(listen=listen, batches=batches))
        answer, failures = half._answer, [OSError("odd"), RuntimeError("odder")]

        def failing(answers: Any) -> None:
            if failures:
                raise failures.pop()
            answer(answers)

        half._answer = failing  # type: ignore[method-assign]
        running = asyncio.create_task(half.run())
        works = [asyncio.wait_for(half.submit(key, Work(key), 1), 5) for key in "abc"]
        found = await asyncio.gather(*works, return_exceptions=True)
        half.close()
        await asyncio.wait_for(running, 5)
        return [each if isinstance(each, str) else type(each).__name__ for each in found]

    assert asyncio.run(go()) == ["made a", "made b", "made c"]


def test_what_nobody_wants_any_more_takes_no_place(tmp_path: Path) -> None:
    process = BusyHalf(keeps=["long"])
    process.reads.set()

    async def work() -> None:
        half = half_of(tmp_path, process, max_batch=1, withdraws=True)
        half.batches.continuous = True
        running = asyncio.create_task(half.run())
        long = asyncio.create_task(half.submit("long", Work("long"), 1))
        queued = asyncio.create_task(half.submit("queued", Work("queued"), 1))
        plain = asyncio.create_task(half.submit("plain", Work("plain"), 1))
        while "long" not in half.batches.in_flight:
            await asyncio.sleep(0.01)
        long.cancel()
        queued.cancel()
        assert await plain == "made plain"
        assert not half.batches.in_flight and not half.batches.waiting
        half.close()
        await running
        assert process.lines[:2] == [Make(batches=[[["long", ""]]]), Withdraw(keys=["long"])]
        assert ["queued", ""] not in process.lines[2].batches[0]

    on_a_loop(work)


def test_what_two_want_goes_on_when_one_leaves(tmp_path: Path) -> None:
    process = BusyHalf()

    async def work() -> None:
        half = half_of(tmp_path, process, withdraws=True)
        running = asyncio.create_task(half.run())
        both = [asyncio.create_task(half.submit("a", Work("a"), 1)) for _ in range(2)]
        while "a" not in half.batches.in_flight:
            await asyncio.sleep(0.01)
        both[0].cancel()
        process.reads.set()
        assert await both[1] == "made a"
        half.close()
        await running
        assert process.lines == [Make(batches=[[["a", ""]]])]

    on_a_loop(work)


def test_no_more_bytes_wait_than_there_is_room_for(tmp_path: Path) -> None:
    async def work() -> None:
        half = half_of(tmp_path, BusyHalf())
        text = "x" * (24 << 20)
        works = [asyncio.create_task(half.submit(str(n), Work(str(n), text), 1)) for n in range(3)]
        with pytest.raises(HttpRefusal) as refused:
            await works[-1]
        assert refused.value.status == 429 and refused.value.retry
        for each in works:
            each.cancel()
        await asyncio.wait(works)
        half.close()
        await half.run()

    on_a_loop(work)


def started(folder: Path) -> tuple[WorkerProcess, BusyHalf, asyncio.Event, asyncio.Event]:
    """A stage and its process, and what is set when it is ready and when it has ended."""
    process, ready, over = BusyHalf(), asyncio.Event(), asyncio.Event()
    stage = WorkerProcess(
        cast(Any, process),
        lambda pipe: call_of("decode", pipe, folder),
        folder / "pipe",
        lambda event: ready.set(),
        lambda stage, error: over.set(),
    )
    return stage, process, ready, over


def test_what_is_told_before_a_process_reads_holds_nothing_up_and_arrives(tmp_path: Path) -> None:
    async def work() -> None:
        stage, process, ready, over = started(tmp_path)
        stage.send(asked("early"))
        await ready.wait()
        for number in range(18):
            stage.send(asked(str(number), LARGE))
        stage.stop()
        stage.send(asked("too late"))
        process.reads.set()
        await over.wait()
        early, *message = [line.batches[0][0] for line in process.lines]
        assert early == ["early", ""]
        assert message == [[str(number), LARGE] for number in range(18)]
        assert not os.path.exists(process.pipe)

    on_a_loop(work)


def test_what_a_process_that_died_did_not_read_is_thrown_away(tmp_path: Path) -> None:
    async def work() -> None:
        stage, process, ready, over = started(tmp_path)
        await ready.wait()
        for _ in range(18):
            stage.send(asked("a", LARGE))
        process.dies.set()
        await over.wait()
        stage.send(asked("nobody reads this"))
        stage.stop()
        assert not os.path.exists(process.pipe)

    on_a_loop(work)
    opened = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # of the listing itself
            opened.append(os.readlink(f"/proc/self/fd/{number}"))
    assert not [name for name in opened if name.startswith(str(tmp_path))]


PIECE = bytes(64 << 10)
PIECES = 32
"""Pieces of an answer: more than the buffers of both ends hold."""


def answered(seconds: float, client: Callable[[socket.socket], Awaitable[int]]) -> tuple[bool, int]:
    """Serve an answer of 2 MiB to a client that is left after so many seconds without reading.
    Return whether it was left, and what the client says."""
    found: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(PIECES):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        messages: list[str] = []
        with suppress(TimeoutError):
            while "http.disconnect" not in messages:
                messages.append((await asyncio.wait_for(receive(), 0.01))["type"])
        found.append("http.disconnect" in messages)
        await send({"type": "http.response.body", "body": b""})

    async def work() -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        listener.bind(("127.0.0.1", 0))
        server = UnsignalledServer(app, 8)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        with socket.socket() as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            asking.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(asking, listener.getsockname())
            await loop.sock_sendall(asking, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            size = await client(asking)
            while not found:
                await asyncio.sleep(0.01)
            found.append(size)
        server.should_exit = True
        await serving

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.interfaces.serve.listening.READ_SECONDS", seconds)
        on_a_loop(work)
    return found[0], found[1]


async def slowly(asking: socket.socket) -> int:
    loop, size = asyncio.get_running_loop(), 0
    while size < PIECES * len(PIECE):
        size += len(await loop.sock_recv(asking, 1 << 20))
        await asyncio.sleep(0.001)
    return size


def test_who_never_reads_is_left_and_who_reads_slowly_is_told_all() -> None:
    assert answered(0.2, lambda asking: asyncio.sleep(0, 0)) == (True, 0)
    left, size = answered(10.0, slowly)
    assert not left and size >= PIECES * len(PIECE)

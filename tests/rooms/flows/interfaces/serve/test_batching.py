"""When batches leave and of what they are, what is withdrawn or made once for several, and which
halves are on the device together."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from artifacts.disk.locks import try_hold
from flows.core.console.display import Display
from flows.interfaces.serve.batching import Batcher, QueuedRequest
from flows.interfaces.serve.device_scheduler import DeviceScheduler
from flows.interfaces.serve.uploads import SingleFlight
from stages.embed_texts import TextsItem
from stages.process.device import CPU_LOCK
from stages.process.output_streams import LastingStream, failed_writes
from tests.support.on_a_loop import on_a_loop


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def batches(most: int = 4) -> Batcher:
    return Batcher(max_size=most, max_weight=100, max_wait=0.01)


def work(
    loop: asyncio.AbstractEventLoop, key: str, *, weight: int = 1, queued: float = 0.0
) -> QueuedRequest:
    return QueuedRequest(
        key=key, item=TextsItem(key, []), weight=weight, answer=loop.create_future(), queued=queued
    )


def keys(some: Iterable[QueuedRequest]) -> list[str]:
    return [each.key for each in some]


def filled(loop: asyncio.AbstractEventLoop, of: str, most: int = 4) -> Batcher:
    """Batches to which works of these keys wait to be given."""
    found = batches(most)
    found.waiting.extend(work(loop, key) for key in of)
    return found


def test_an_idle_half_is_given_what_there_is_at_once(loop: asyncio.AbstractEventLoop) -> None:
    found = batches()
    assert found.seconds_until_batch(0.0) is None
    found.waiting.append(work(loop, "a"))
    assert found.seconds_until_batch(0.0) == 0.0
    assert keys(found.take()) == ["a"]


def test_an_idle_half_waits_for_works_on_the_way_alone(loop: asyncio.AbstractEventLoop) -> None:
    found = batches()
    found.waiting.append(work(loop, "a", queued=5.0))
    found.expected = 1
    assert found.seconds_until_batch(5.0) == pytest.approx(0.01)
    assert found.seconds_until_batch(5.004) == pytest.approx(0.006)
    assert found.seconds_until_batch(5.5) == 0.0
    found.waiting.extend(work(loop, key, queued=5.0) for key in "bcd")
    assert found.seconds_until_batch(5.0) == 0.0, "it is full"


def test_while_a_half_is_busy_full_batches_go_beside(loop: asyncio.AbstractEventLoop) -> None:
    found = filled(loop, "a", most=2)
    found.take()
    found.waiting.append(work(loop, "b"))
    assert found.seconds_until_batch(9.0) is None
    found.waiting.append(work(loop, "c"))
    assert found.seconds_until_batch(9.0) == 0.0
    assert keys(found.take()) == ["b", "c"]
    found.waiting.extend(work(loop, key) for key in "de")
    assert found.seconds_until_batch(9.0) is None, "it has two batches"
    list(found.complete(["a"]))
    assert found.seconds_until_batch(9.0) == 0.0


def test_a_batch_is_bounded_by_weight_but_for_one_alone(loop: asyncio.AbstractEventLoop) -> None:
    found = batches(most=9)
    weights = {"a": 60, "b": 30, "c": 20, "d": 500, "e": 1}
    found.waiting.extend(work(loop, key, weight=weight) for key, weight in weights.items())
    assert [keys(found.take()) for _ in range(4)] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_who_is_gone_is_not_made(loop: asyncio.AbstractEventLoop) -> None:
    found = filled(loop, "ab")
    gone, there = found.waiting
    gone.answer.cancel()
    assert keys(found.take()) == ["b"]
    there.answer.cancel()
    found.waiting.append(there)
    assert found.seconds_until_batch(0.0) is None


def test_works_of_one_key_are_made_once(loop: asyncio.AbstractEventLoop) -> None:
    found = filled(loop, "aa")
    assert keys(found.take()) == ["a"]
    assert len(list(found.complete(["a"]))) == 2
    assert found.idle


def test_after_a_death_each_goes_alone_and_is_blamed_twice(loop: asyncio.AbstractEventLoop) -> None:
    found = filled(loop, "abc")
    found.take()
    found.waiting.append(work(loop, "d"))
    assert found.requeue_after_crash() == []
    assert keys(found.waiting) == ["a", "b", "c", "d"]
    assert found.seconds_until_batch(0.0) == 0.0
    assert keys(found.take()) == ["a"]
    assert found.seconds_until_batch(0.0) is None, "nobody goes beside it"
    assert found.requeue_after_crash() == [], "once it may have been chance"
    assert keys(found.take()) == ["a"]
    assert keys(found.requeue_after_crash()) == ["a"]
    assert keys(found.take()) == ["b"]
    list(found.complete(["b"]))
    assert keys(found.take()) == ["c"]
    list(found.complete(["c"]))
    assert keys(found.take()) == ["d"]


def test_what_did_not_fit_goes_alone_and_is_blamed_twice(loop: asyncio.AbstractEventLoop) -> None:
    found = filled(loop, "abc")
    found.take()
    list(found.complete("ac"))
    assert found.requeue_after_oom("b") == [], "others may have been in its way"
    found.waiting.append(work(loop, "d"))
    assert keys(found.take()) == ["b"]
    assert found.seconds_until_batch(0.0) is None, "nobody goes beside it"
    assert found.requeue_after_oom("b") == [], "what others left may have been"
    assert keys(found.take()) == ["b"]
    assert keys(found.requeue_after_oom("b")) == ["b"]
    assert keys(found.take()) == ["d"]


def test_in_flight_a_work_goes_whenever_there_is_room(loop: asyncio.AbstractEventLoop) -> None:
    found = filled(loop, "abc", most=2)
    found.continuous = True
    assert found.seconds_until_batch(0.0) == 0.0
    assert keys(found.take()) == ["a", "b"]
    assert found.seconds_until_batch(0.0) is None
    list(found.complete(["b"]))
    assert found.seconds_until_batch(0.0) == 0.0
    assert keys(found.take()) == ["c"]


@dataclass(eq=False)
class Tenant:
    """One that leaves at once when it is asked to."""

    name: str
    peak_bytes: int
    residence: DeviceScheduler
    idle: bool = True
    left: list[str] = field(default_factory=list)

    def leave(self) -> None:
        self.left.append(self.name)
        self.residence.release(self)


def residence() -> DeviceScheduler:
    return DeviceScheduler("cpu", 100, lambda text: None)


def test_all_that_may_be_there_together_are_kept_to_the_budget() -> None:
    async def go() -> None:
        place = residence()
        small = [Tenant(name, size, place) for name, size in (("a", 30), ("b", 20), ("c", 20))]
        large = Tenant("d", 90, place)
        place.users += [*small, large]
        rooms = [await place.acquire(tenant) for tenant in small]
        assert not any(tenant.left for tenant in small)
        assert rooms == [40, 30, 30]
        assert await place.acquire(large) == 100
        assert all(tenant.left for tenant in small)

    asyncio.run(go())


def test_one_at_work_finishes_its_turn_and_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        place = residence()
        first, second = Tenant("a", 60, place, idle=False), Tenant("b", 50, place)
        await place.acquire(first)
        coming = asyncio.create_task(place.acquire(second))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not coming.done()
        assert not place.must_yield(), "its turn is not over"
        monkeypatch.setattr("flows.interfaces.serve.device_scheduler.TURN_SECONDS", 0.0)
        assert place.must_yield(), "it is to begin nothing more"
        first.idle = True
        place.recheck()
        assert await asyncio.wait_for(coming, 1) == 100
        assert first.left == ["a"]
        assert not place.must_yield()

    asyncio.run(go())


def test_one_larger_than_the_budget_comes_alone() -> None:
    place = residence()
    asyncio.run(asyncio.wait_for(place.acquire(Tenant("a", 500, place)), 1))


@pytest.mark.parametrize("is_full", [False, True])
def test_a_device_is_waited_for_and_left_and_a_full_log_stops_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    path = tmp_path / "lock"
    monkeypatch.setenv(CPU_LOCK, str(path))
    monkeypatch.setattr("flows.interfaces.serve.device_scheduler.POLL_SECONDS", 0.01)
    texts: list[str] = []

    async def go(note: Callable[[str], None]) -> None:
        place = DeviceScheduler("cpu", 100, note)
        other = try_hold(path)
        assert other is not None
        tenant = Tenant("a", 10, place)
        coming = asyncio.create_task(place.acquire(tenant))
        await asyncio.sleep(0.05)
        assert not coming.done()
        assert place.held_by.startswith("process ")
        assert texts == ([] if is_full else [f"waiting for CPU, used by {place.held_by}"])
        other.close()
        await asyncio.wait_for(coming, 5)
        assert place.held_by == ""
        assert try_hold(path) is None
        tenant.leave()
        again = try_hold(path)
        assert again is not None, "a batch job has its turn"
        again.close()

    before = failed_writes()
    with open("/dev/full", "w") as full:
        asyncio.run(go(Display(to=full).print_line if is_full else texts.append))
        LastingStream(full).end()
    assert (failed_writes() > before) == is_full


def test_it_is_made_once_for_all_and_goes_on_when_some_leave() -> None:
    async def work() -> None:
        shared: SingleFlight[int] = SingleFlight()
        go_on, calls = asyncio.Event(), 0

        async def make() -> int:
            nonlocal calls
            calls += 1
            await go_on.wait()
            return calls

        asking = [asyncio.create_task(shared.once("a", make)) for _ in range(3)]
        await asyncio.sleep(0)
        asking[0].cancel()
        await asyncio.sleep(0)
        go_on.set()
        assert [await each for each in asking[1:]] == [1, 1]

    on_a_loop(work)


def test_who_asks_as_the_last_one_leaves_is_answered() -> None:
    async def work() -> None:
        shared: SingleFlight[str] = SingleFlight()
        left = []

        async def long() -> str:
            try:
                await asyncio.sleep(60)
            finally:
                left.append(True)
            return "long"

        async def short() -> str:
            return "short"

        first = asyncio.create_task(shared.once("a", long))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0)  # it has heard of it, and what it asked for has not
        assert await shared.once("a", short) == "short"
        await asyncio.sleep(0.01)
        assert left == [True]
        assert await shared.once("a", short) == "short"

    on_a_loop(work)

"""When batches leave, of what they are, and who goes alone after a death."""

import asyncio
from collections.abc import Iterator

import pytest

from flows.serving.batching import Batcher, QueuedRequest
from stages.embed_texts.job import TextsItem


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
        key=key,
        item=TextsItem(key, []),
        weight=weight,
        answer=loop.create_future(),
        queued=queued,
    )


def keys(some: list[QueuedRequest]) -> list[str]:
    return [each.key for each in some]


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
    found = batches(most=2)
    found.waiting.append(work(loop, "a"))
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
    found = batches()
    gone, there = work(loop, "a"), work(loop, "b")
    found.waiting.extend([gone, there])
    gone.answer.cancel()
    assert keys(found.take()) == ["b"]
    there.answer.cancel()
    found.waiting.append(there)
    assert found.seconds_until_batch(0.0) is None


def test_works_of_one_key_are_made_once(loop: asyncio.AbstractEventLoop) -> None:
    found = batches()
    found.waiting.extend([work(loop, "a"), work(loop, "a")])
    assert keys(found.take()) == ["a"]
    assert len(list(found.complete(["a"]))) == 2
    assert found.idle


def test_after_a_death_each_goes_alone_and_is_blamed_twice(loop: asyncio.AbstractEventLoop) -> None:
    found = batches()
    found.waiting.extend(work(loop, key) for key in "abc")
    found.take()
    found.waiting.append(work(loop, "d"))
    assert found.requeue_after_crash() == []
    assert keys(list(found.waiting)) == ["a", "b", "c", "d"]
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
    found = batches()
    found.waiting.extend(work(loop, key) for key in "abc")
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
    found = batches(most=2)
    found.continuous = True
    found.waiting.extend(work(loop, key) for key in "abc")
    assert found.seconds_until_batch(0.0) == 0.0
    assert keys(found.take()) == ["a", "b"]
    assert found.seconds_until_batch(0.0) is None
    list(found.complete(["b"]))
    assert found.seconds_until_batch(0.0) == 0.0
    assert keys(found.take()) == ["c"]

"""What several requests wait for is made once, for whoever of them stays."""

import asyncio

from flows.serving.shared import Shared
from tests.support.on_a_loop import on_a_loop


def test_it_is_made_once_for_all_and_goes_on_when_some_leave() -> None:
    async def work() -> None:
        shared: Shared[int] = Shared()
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
        shared: Shared[str] = Shared()
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

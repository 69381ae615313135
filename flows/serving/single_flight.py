"""Coalesces identical concurrent requests into one computation.

If one client disconnects, the others still get the result. If all do, the computation is cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from flows.serving.uploads import Upload

ResultT = TypeVar("ResultT")


class SingleFlight(Generic[ResultT]):
    """A computation that several requests await."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[ResultT]] = {}
        self._waiters: dict[str, int] = {}

    async def once(self, key: str, make: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Return the result of `make`, which runs once for all concurrent requests of a key."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(self._made(key, make))
        self._waiters[key] = self._waiters.get(key, 0) + 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiters[key] -= 1
            if not self._waiters[key]:
                del self._waiters[key]
                if not task.done():
                    del self._tasks[key]  # later requests start a new computation
                    task.cancel()

    async def once_of(
        self, upload: Upload, key: str, make: Callable[[], Awaitable[ResultT]]
    ) -> ResultT:
        """Do the same for an upload, and delete it when no computation needs it. Other requests may
        share the computation's result."""
        is_ours = False

        async def made() -> ResultT:
            nonlocal is_ours
            is_ours = True
            try:
                return await make()
            finally:
                upload.remove()

        try:
            return await self.once(key, made)
        finally:
            if not is_ours:
                upload.remove()

    async def _made(self, key: str, make: Callable[[], Awaitable[ResultT]]) -> ResultT:
        try:
            return await make()
        finally:
            if self._tasks.get(key) is asyncio.current_task():
                del self._tasks[key]

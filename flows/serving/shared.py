"""Coalesces identical concurrent requests into one computation.

If one client disconnects, the others still get the result. If all do, the computation is cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from flows.serving.uploads import Upload

Made = TypeVar("Made")


class SingleFlight(Generic[Made]):
    """A computation that several requests await."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Made]] = {}
        self._wanted: dict[str, int] = {}

    async def once(self, key: str, make: Callable[[], Awaitable[Made]]) -> Made:
        """Return what `make` gives, which is called once for all that ask for the key meanwhile."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(self._made(key, make))
        self._wanted[key] = self._wanted.get(key, 0) + 1
        try:
            return await asyncio.shield(task)
        finally:
            self._wanted[key] -= 1
            if not self._wanted[key]:
                del self._wanted[key]
                if not task.done():
                    del self._tasks[key]  # who asks from now on does not wait for this one
                    task.cancel()

    async def once_of(self, upload: Upload, key: str, make: Callable[[], Awaitable[Made]]) -> Made:
        """Do the same of an upload, which is removed when nobody needs it any more: others may wait
        for what is made of it."""
        is_ours = False

        async def made() -> Made:
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

    async def _made(self, key: str, make: Callable[[], Awaitable[Made]]) -> Made:
        try:
            return await make()
        finally:
            if self._tasks.get(key) is asyncio.current_task():
                del self._tasks[key]

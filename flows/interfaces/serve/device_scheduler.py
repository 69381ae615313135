"""Decides which halves of a server are on the device.

Halves that fit the memory budget together are loaded on the device at the same time, and stay
loaded. Otherwise an idle half leaves for one that has requests. A busy half finishes its batch
first, and then makes room. The device's lock is held while a half is loaded. When none is, the lock
is released, so that batch jobs can use the device.
"""

import asyncio
import time
from collections.abc import Callable
from typing import IO, Protocol

from artifacts.disk.locks import holder, try_hold
from flows.interfaces.serve.refusals import HttpRefusal, unavailable
from stages.process.device import lock_of

TURN_SECONDS = 5.0
"""Time that a working half keeps the device while another waits for it. Loading a half takes
seconds, so turns must be longer."""
POLL_SECONDS = 0.25
"""Interval at which the device lock is tried."""


class DeviceUser(Protocol):
    """A half, as the scheduler sees it."""

    name: str

    @property
    def peak_bytes(self) -> int:
        """Return its planned memory in bytes."""

    @property
    def idle(self) -> bool:
        """Return whether it has no unfinished batch."""

    def leave(self) -> None:
        """Start to unload. `release` is called when the memory is free."""


class DeviceScheduler:
    """The memory of one device, shared among halves."""

    def __init__(self, device: str, budget_bytes: int, log: Callable[[str], None]) -> None:
        """Hold no lock yet. Raises EnvironmentFault if the device has no usable lock."""
        self._device = device
        self._path = lock_of(device)
        self._budget = budget_bytes
        self._log = log
        self.users: list[DeviceUser] = []
        """All halves that may use the device."""
        self._loaded: dict[DeviceUser, int] = {}
        """Loaded half → bytes granted to it, oldest first."""
        self._waiting: dict[DeviceUser, float] = {}
        """Waiting half → time since when it waits, oldest first."""
        self._lock: IO[str] | None = None
        self._changed = asyncio.Event()
        self._locking = asyncio.Lock()
        """Held by the half that tries to take the device's lock."""
        self.held_by = ""
        """Another process that has the device while a half waits for it."""

    @property
    def refusal(self) -> HttpRefusal | None:
        """Return the refusal of requests while another process has the device, or None."""
        if not self.held_by:
            return None
        return unavailable(
            f"the device is used by {self.held_by}", "Ask again when its job is done"
        )

    async def acquire(self, user: DeviceUser) -> int:
        """Wait until the half fits and this process holds the device lock. Return the bytes that
        are granted to the half."""
        granted = await self.enter(user)
        try:
            await self._take_lock()
        except BaseException:
            self.release(user)
            raise
        return granted

    async def enter(self, user: DeviceUser) -> int:
        """Do the same without the lock, which a job's own processes take."""
        self._waiting[user] = time.monotonic()
        try:
            self._changed.clear()
            while not self._may_enter(user):
                await self._changed.wait()
                self._changed.clear()
            granted = self._loaded[user] = self._grant(user)
        finally:
            del self._waiting[user]
            self._changed.set()
        return granted

    def release(self, user: DeviceUser) -> None:
        """Free the memory of a half that was unloaded."""
        self._loaded.pop(user, None)
        if not self._loaded and self._lock is not None:
            self._lock.close()
            self._lock = None
        self._changed.set()

    def must_yield(self) -> bool:
        """Return whether the loaded halves must start no new batch, because another half has waited
        for its turn."""
        now = time.monotonic()
        return any(
            now - since >= TURN_SECONDS and not self._fits(other)
            for other, since in self._waiting.items()
        )

    def recheck(self) -> None:
        """Check again which half may enter, because one has become idle."""
        if self._waiting:
            self._changed.set()

    def _may_enter(self, user: DeviceUser) -> bool:
        if next(iter(self._waiting)) is not user:
            return False
        if self._fits(user):
            return True
        for other in list(self._loaded):
            if other.idle:
                other.leave()
        return False

    def _fits(self, user: DeviceUser) -> bool:
        return not self._loaded or sum(self._loaded.values()) + user.peak_bytes <= self._budget

    def _grant(self, user: DeviceUser) -> int:
        """Return the bytes for a half that enters: its plan, and its share of the rest. A larger
        share would take memory planned for others."""
        spare = self._budget - sum(self._loaded.values()) - user.peak_bytes
        sharing = 1
        for other in self.users:
            if other is not user and other not in self._loaded and other.peak_bytes <= spare:
                spare -= other.peak_bytes
                sharing += 1
        return user.peak_bytes + spare // sharing

    async def _take_lock(self) -> None:
        """Take the device's lock unless this process has it. One half tries at a time, since a
        second try would find the lock held by this process."""
        async with self._locking:
            while self._path is not None and self._lock is None:
                self._lock = await asyncio.to_thread(try_hold, self._path)
                if self._lock is not None:
                    self.held_by = ""
                    return
                owner = await asyncio.to_thread(holder, self._path)
                if not self.held_by:
                    self._log(f"waiting for {self._device.upper()}, used by {owner}")
                self.held_by = owner
                await asyncio.sleep(POLL_SECONDS)

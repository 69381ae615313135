"""Decides which halves may be loaded on the device at the same time, and holds its lock while one
is.

Halves that fit the memory budget together stay loaded. Otherwise an idle half leaves for one that
has requests. A busy half finishes its batch first, and then makes room. When no half is loaded, the
lock is released, so that batch jobs can use the device.
"""

import asyncio
import time
from collections.abc import Callable
from typing import IO, Protocol

from flows.serving.refusals import HttpRefusal, unavailable
from stages.process.lock import holder, lock_of, try_hold

TURN_SECONDS = 5.0
"""Time for which one at work goes on while another waits for its room: to load a half takes
seconds, so turns are to be longer."""
LOOK_SECONDS = 0.25
"""How often it is asked whether the device is free."""


class DeviceUser(Protocol):
    """A half as the device scheduling sees it."""

    name: str

    @property
    def peak_bytes(self) -> int:
        """Return the bytes that it is planned to take."""

    @property
    def idle(self) -> bool:
        """Return whether it has nothing to do right now."""

    def leave(self) -> None:
        """Begin to go; `left` is called when it has."""


class DeviceScheduler:
    """The memory of one device, shared among halves."""

    def __init__(self, device: str, budget_bytes: int, say: Callable[[str], None]) -> None:
        """Take no place yet. Raises EnvironmentFault for a device whose lock cannot be had."""
        self._device = device
        self._path = lock_of(device)
        self._budget = budget_bytes
        self._say = say
        self.known: list[DeviceUser] = []
        """All that may come in."""
        self._here: dict[DeviceUser, int] = {}
        """Bytes that each on the device may take, the one that came in first at the front."""
        self._waiting: dict[DeviceUser, float] = {}
        """Those that wait to come in, since when, the first at the front."""
        self._lock: IO[str] | None = None
        self._changed = asyncio.Event()
        self._asking = asyncio.Lock()
        """Held by the tenant that asks for the device's lock."""
        self.held_by = ""
        """Who has the device instead, while it is waited for."""

    @property
    def refusal(self) -> HttpRefusal | None:
        """Return why nothing can be made now; None where something can."""
        if not self.held_by:
            return None
        return unavailable(f"{self.held_by} has the device", "Ask again when its job is done")

    async def enter(self, tenant: DeviceUser) -> None:
        """Wait until there is room for one more, and the device is ours."""
        self._waiting[tenant] = time.monotonic()
        try:
            self._changed.clear()
            while not self._let_in(tenant):
                await self._changed.wait()
                self._changed.clear()
            self._here[tenant] = self._room(tenant)
        finally:
            del self._waiting[tenant]
            self._changed.set()
        try:
            await self._hold()
        except BaseException:
            self.left(tenant)
            raise

    def left(self, tenant: DeviceUser) -> None:
        """Hear that one has gone, and what it had is free."""
        self._here.pop(tenant, None)
        if not self._here and self._lock is not None:
            self._lock.close()
            self._lock = None
        self._changed.set()

    def must_yield(self) -> bool:
        """Return whether those that are here are to begin nothing more, because another has waited
        for its room for long enough."""
        now = time.monotonic()
        return any(
            now - since >= TURN_SECONDS and not self._fits(other)
            for other, since in self._waiting.items()
        )

    def look(self) -> None:
        """Look again who may come in: somebody has nothing more to do."""
        if self._waiting:
            self._changed.set()

    def granted_bytes(self, tenant: DeviceUser) -> int:
        """Return the bytes that one may take that is here."""
        return self._here[tenant]

    def _let_in(self, tenant: DeviceUser) -> bool:
        if next(iter(self._waiting)) is not tenant:
            return False
        if self._fits(tenant):
            return True
        for other in list(self._here):
            if other.idle:
                other.leave()
        return False

    def _fits(self, tenant: DeviceUser) -> bool:
        return not self._here or sum(self._here.values()) + tenant.peak_bytes <= self._budget

    def _room(self, tenant: DeviceUser) -> int:
        """Return the bytes for one that comes in: what it is planned to take, and its part of what
        is left over. Who is kept to more than that would have what others are planned to take."""
        spare = self._budget - sum(self._here.values()) - tenant.peak_bytes
        sharing = 1
        for other in self.known:
            if other is not tenant and other not in self._here and other.peak_bytes <= spare:
                spare -= other.peak_bytes
                sharing += 1
        return tenant.peak_bytes + spare // sharing

    async def _hold(self) -> None:
        """Wait for the device's lock, unless we have it. One tenant asks at a time: another would
        find it held by this very process."""
        async with self._asking:
            while self._path is not None and self._lock is None:
                self._lock = await asyncio.to_thread(try_hold, self._path)
                if self._lock is not None:
                    self.held_by = ""
                    return
                who = await asyncio.to_thread(holder, self._path)
                if not self.held_by:
                    self._say(f"waiting for {self._device.upper()}, {who} has it")
                self.held_by = who
                await asyncio.sleep(LOOK_SECONDS)

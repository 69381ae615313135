"""Decides which halves may be on the device at the same time, and holds its lock while one is;
knows no request.

Halves that fit the budget together stay. Where they do not, one that has nothing to do leaves for
one that has; who is at work goes on until its batch is made, and then lets the other in. When none
is there, the lock is given back, so that batch jobs on the same device have their turn.
"""

import asyncio
import time
from collections.abc import Callable
from typing import IO, Protocol

from flows.serving.refusals import Refused, unavailable
from stages.process.lock import try_hold_device

TURN_SECONDS = 5.0
"""Time for which one at work goes on while another waits for its room: to load a half takes
seconds, so turns are to be longer."""
LOOK_SECONDS = 0.25
"""How often it is asked whether the device is free."""


class Tenant(Protocol):
    """A half, as far as its place is concerned."""

    name: str

    @property
    def peak_bytes(self) -> int:
        """Return the bytes that it is planned to take."""

    @property
    def idle(self) -> bool:
        """Return whether it has nothing to do right now."""

    def leave(self) -> None:
        """Begin to go; `left` is called when it has."""


class Residence:
    """The memory of one device."""

    def __init__(self, device: str, budget_bytes: int, say: Callable[[str], None]) -> None:
        self._device = device
        self._budget = budget_bytes
        self._say = say
        self._here: list[Tenant] = []
        """Those on the device, the one that came in first at the front."""
        self._waiting: dict[Tenant, float] = {}
        """Those that wait to come in, since when, the first at the front."""
        self._lock: IO[str] | None = None
        self._has_lock = False
        self._changed = asyncio.Event()
        self.held_by = ""
        """Who has the device instead, while it is waited for."""

    @property
    def refusal(self) -> Refused | None:
        """Return why nothing can be made now; None where something can."""
        if not self.held_by:
            return None
        return unavailable(f"{self.held_by} has the device", "Ask again when its job is done")

    async def enter(self, tenant: Tenant) -> None:
        """Wait until there is room for one more, and the device is ours."""
        self._waiting[tenant] = time.monotonic()
        try:
            self._changed.clear()
            while not self._let_in(tenant):
                await self._changed.wait()
                self._changed.clear()
            self._here.append(tenant)
        finally:
            del self._waiting[tenant]
            self._changed.set()
        try:
            await self._hold()
        except BaseException:
            self.left(tenant)
            raise

    def left(self, tenant: Tenant) -> None:
        """Hear that one has gone, and what it had is free."""
        if tenant in self._here:
            self._here.remove(tenant)
        if not self._here and self._lock is not None:
            self._lock.close()
            self._lock, self._has_lock = None, False
        self._changed.set()

    def gives_way(self) -> bool:
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

    def room_for(self, tenant: Tenant) -> int:
        """Return the bytes that one may take beside the others that are here."""
        return self._budget - sum(o.peak_bytes for o in self._here if o is not tenant)

    def _let_in(self, tenant: Tenant) -> bool:
        if next(iter(self._waiting)) is not tenant:
            return False
        if self._fits(tenant):
            return True
        for other in list(self._here):
            if other.idle:
                other.leave()
        return False

    def _fits(self, tenant: Tenant) -> bool:
        taken = sum(other.peak_bytes for other in self._here)
        return not self._here or taken + tenant.peak_bytes <= self._budget

    async def _hold(self) -> None:
        """Wait for the device's lock, unless we have it."""
        while not self._has_lock:
            lock, who = try_hold_device(self._device)
            if not who:
                self._lock, self._has_lock, self.held_by = lock, lock is not None, ""
                return
            if not self.held_by:
                self._say(f"waiting for {self._device.upper()}, {who} has it")
            self.held_by = who
            await asyncio.sleep(LOOK_SECONDS)

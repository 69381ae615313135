"""Chooses the server of each request, and keeps what each server states about its model."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from artifacts.endpoints import Endpoint, EndpointKeys
from artifacts.errors import EnvironmentFault, UsageError
from stages.ask.client import Client
from stages.ask.pace import RequestPace

PATIENCE = 120.0
"""Seconds without any answer of any server after which a run ends."""
PAUSE = (0.5, 15.0)
"""First and longest pause in seconds after a server was silent or overloaded."""


class ModelServer:
    """One server."""

    def __init__(self, client: Client, pace: RequestPace, seen: Sequence[str]) -> None:
        self.client = client
        self.pace = pace
        self.in_flight = 0
        self.paused_until = 0.0
        self.seen = list(seen)
        """Model and fingerprint that it has stated; empty: nothing yet."""
        self.answers = 0
        self.out_since: float | None = None
        """Time from which it could not be reached or was overloaded; None: it answers."""
        self._faults = 0
        """Times in a row that it was silent or overloaded."""

    def reached(self) -> None:
        """Note that the server has answered."""
        self._faults, self.out_since = 0, None

    def answered(self, model: str, fingerprint: str) -> None:
        """Note a caption and what the server says of its model. Raises EnvironmentFault if that has
        changed."""
        self.reached()
        self.answers += 1
        now = [model, fingerprint]
        if self.seen and self.seen != now:
            before, after = (" ".join(filter(None, each)) for each in (self.seen, now))
            raise EnvironmentFault(
                f"the model changed while it was used: {self.client.endpoint.origin} answered as "
                f"{before}, then as {after}",
                hint="Captions before the change are kept; give the new model a --revision of its "
                "own to make all of them anew",
            )
        self.seen = now

    def silent(self, sent: float, *, reached: bool) -> None:
        """Note a request without an answer."""
        if reached:
            self.pace.overloaded(sent, time.monotonic())
        else:
            self._pause(None)

    def overloaded(self, sent: float, wait: float | None) -> None:
        """Note an answer that the server has too much to do."""
        self.pace.overloaded(sent, time.monotonic())
        self._pause(wait)

    def _pause(self, wait: float | None) -> None:
        now = time.monotonic()
        first, longest = PAUSE
        self.out_since = max(self.out_since or now, now + wait if wait else 0.0)
        if now >= self.paused_until or wait is not None:
            pause = min(longest, first * 2 ** min(self._faults, 10)) if wait is None else wait
            self.paused_until = max(self.paused_until, now + pause)
            self._faults += 1


class ModelServers:
    """All servers of one model."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        keys: EndpointKeys,
        at_once: int,
        seen: Mapping[str, Sequence[str]],
    ) -> None:
        self._every = [
            ModelServer(Client(each, keys), RequestPace(at_once), seen.get(each.url, ()))
            for each in endpoints
        ]
        self._free = asyncio.Condition()
        self.most = at_once * len(endpoints)

    async def take(self, last: ModelServer | None = None) -> ModelServer:
        """Return a server that may get a request now, rather another than `last`."""
        async with self._free:
            while True:
                now = time.monotonic()
                paused = [s.paused_until for s in self._every if s.paused_until > now]
                free = [
                    server
                    for server in self._every
                    if server.in_flight < int(server.pace.limit) and server.paused_until <= now
                ]
                if free:
                    found = min(free, key=lambda s: (s is last, s.in_flight / s.pace.limit))
                    found.in_flight += 1
                    return found
                try:
                    async with asyncio.timeout(min(paused) - now if paused else None):
                        await self._free.wait()
                except TimeoutError:
                    pass

    async def give_back(self, server: ModelServer) -> None:
        """Note that a request to a server has ended."""
        async with self._free:
            server.in_flight -= 1
            self._free.notify_all()

    def check_any(self) -> None:
        """Raise EnvironmentFault if no server has answered for a long time."""
        now = time.monotonic()
        if all(s.out_since is not None and now - s.out_since > PATIENCE for s in self._every):
            names = ", ".join(server.client.endpoint.origin for server in self._every)
            raise EnvironmentFault(
                f"no answer from {names} for {PATIENCE:.0f} s",
                hint="Start the server, or check the address; the same command then goes on",
            )

    def notes(self) -> dict[str, Any]:
        """Return what is known of the servers, for the run record."""
        return {
            "served": {s.client.endpoint.url: s.seen for s in self._every if s.seen},
            "answers": {s.client.endpoint.url: s.answers for s in self._every},
            "at_once": {s.client.endpoint.url: int(s.pace.limit) for s in self._every},
        }

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(server.client.close() for server in self._every))


def refuse_all(client: Client, status: int, reason: str, model: str) -> None:
    """Raise an error for an answer that each other item would get, too."""
    where = client.endpoint.origin
    if status in (401, 403):
        raise EnvironmentFault(
            f"{where} does not accept the key: {reason}"
            if client.has_key
            else f"{where} wants a key: {reason}",
            hint=f"Write a line `{client.endpoint.host} = KEY` into a file of mode 0600, "
            "and name it with --endpoint-keys",
        )
    if status == 404:
        raise UsageError(
            f"{client.endpoint.url} has no model {model}, or no chat completions: {reason}",
            hint="Check the name after openai:, and the address, which usually ends with /v1",
        )
    if 300 <= status < 400:
        raise EnvironmentFault(
            f"{where} redirects to another address, which is not followed (HTTP {status})",
            hint="Name the address itself with --endpoint",
        )
    if status < 400:
        raise EnvironmentFault(
            f"{where} sends no answer: {reason}", hint="Check that it is a server of models"
        )

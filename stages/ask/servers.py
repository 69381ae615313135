"""Chooses the server of each request, and keeps what each server states about its model."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from artifacts.endpoints import Endpoint, EndpointKeys
from artifacts.errors import EnvironmentFault, UsageError
from stages.ask.client import ADDRESS_HINT, Client, Reply
from stages.ask.pace import RequestPace

PATIENCE = 120.0
"""Seconds for which no server may be reached, or all be overloaded, before a run ends."""
MAX_SILENCE = 1800.0
"""Seconds without an answer before a run ends, with all pauses that servers request."""
PAUSE = (0.5, 15.0)
"""First and longest pause in seconds after a server was overloaded or not reached."""
OVERLOADED = (408, 425, 429, 503)
TRIES = 8
"""Requests before a run begins, to a server that is overloaded."""


class ModelServer:
    """One server. `seen` is the model and the fingerprint that it has stated in this run."""

    def __init__(self, client: Client, at_once: int, seen: Sequence[str]) -> None:
        self.client = client
        self.pace = RequestPace(at_once)
        self.seen = list(seen)
        self.in_flight = self.answers = self._pauses = 0
        self.paused_until = 0.0
        self.out_since: float | None = None
        """Time since which it has not answered, after a pause that it requested; None: it
        answers."""
        self.silent_since: float | None = None
        """The same without regard to pauses."""

    def reached(self) -> None:
        """Note that the server has answered."""
        self._pauses, self.out_since, self.silent_since = 0, None, None

    def silence(self, now: float) -> float:
        """Return the seconds without an answer at its next try."""
        since = self.silent_since
        return 0.0 if since is None else max(now, self.paused_until) - since

    def answered(self, model: str, fingerprint: str) -> None:
        """Note a caption and what the server states. Raises EnvironmentFault if that has
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

    def pause(self, wait: float = 0.0, why: str = "is overloaded") -> None:
        """Send nothing for a while: more each time, and at least so many seconds. The first of the
        requests that were sent together says so."""
        now, seconds = time.monotonic(), pause_after(self._pauses, wait)
        self.silent_since = self.silent_since or now
        self.out_since = max(self.out_since or now, now + wait if wait == seconds else 0.0)
        if now >= self.paused_until or wait == seconds:
            if now >= self.paused_until:
                self.client.say_wait(seconds, why)
            self.paused_until = max(self.paused_until, now + seconds)
            self._pauses += 1


class ModelServers:
    """All servers of one model."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        keys: EndpointKeys,
        at_once: int,
        seen: Mapping[str, Sequence[str]],
        say: Callable[[str], object] = bool,
    ) -> None:
        self._every = [
            ModelServer(Client(each, keys, say), at_once, seen.get(each.url, ()))
            for each in endpoints
        ]
        self._waiting: deque[tuple[asyncio.Future[ModelServer], ModelServer | None]] = deque()
        """Requests that wait for a free server, in order, and the server each would rather not
        get."""
        self._timer: asyncio.TimerHandle | None = None
        """Set while requests wait and a server is paused: it fires when the pause ends."""

    async def take(self, last: ModelServer | None = None) -> ModelServer:
        """Return a server that may get a request now, rather another than `last`. Raises
        EnvironmentFault if none has answered for a long time."""
        now, every = time.monotonic(), self._every
        out = all(s.out_since is not None and now - s.out_since > PATIENCE for s in every)
        if out or all(s.silence(now) > MAX_SILENCE for s in every):
            raise EnvironmentFault(
                f"no answer from {', '.join(s.client.endpoint.origin for s in every)} for "
                f"{PATIENCE if out else MAX_SILENCE:.0f} s",
                hint="Start the server, or check the address; the same command then goes on",
            )
        turn: asyncio.Future[ModelServer] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, last))
        self._hand_out()
        return await turn

    def give_back(self, server: ModelServer) -> None:
        """Note that a request to a server has ended, and let waiting ones go on."""
        server.in_flight -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        """Give the free servers to the requests that have waited longest, and look again when the
        next pause ends."""
        now = time.monotonic()  # once: a pause that ends in between would set no timer
        while self._waiting:
            turn, last = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
            elif found := self._free(last, now):
                found.in_flight += 1
                self._waiting.popleft()
                turn.set_result(found)
            else:
                break
        if self._timer:
            self._timer.cancel()
            self._timer = None
        pauses = [s.paused_until - now for s in self._every if s.paused_until > now]
        if self._waiting and pauses:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(pauses), self._hand_out)

    def _free(self, last: ModelServer | None, now: float) -> ModelServer | None:
        """Return a server that may get one more request; None: there is none."""
        free = [s for s in self._every if s.paused_until <= now and s.in_flight < s.pace.limit]
        return min(free, key=lambda s: (s is last, s.in_flight / s.pace.limit), default=None)

    def notes(self) -> dict[str, Any]:
        """Return what is known of the servers, for the run record."""
        every = {server.client.endpoint.url: server for server in self._every}
        return {
            "served": {url: server.seen for url, server in every.items() if server.seen},
            "answers": {url: server.answers for url, server in every.items()},
            "at_once": {url: server.pace.limit for url, server in every.items()},
        }


def pause_after(pauses: int, wait: float) -> float:
    """Return the seconds of the next pause. `wait` is what the server requests. If that is less
    than our own pause, ours counts: otherwise requests would follow each other at once."""
    first, longest = PAUSE
    return max(wait, min(longest, first * 2.0 ** min(pauses, 9)))


async def patiently(client: Client, request: Callable[[], Awaitable[Reply]]) -> Reply:
    """Return the reply to a request, which is sent a few times to an overloaded server. Raises
    NoReply."""
    for pauses in range(TRIES - 1):
        reply = await request()
        if reply.status not in OVERLOADED:
            return reply
        client.say_wait(wait := pause_after(pauses, reply.wait))
        await asyncio.sleep(wait)
    return await request()


def refuse_page(client: Client, reply: Reply, keys: EndpointKeys) -> None:
    """Raise an error for a web page in place of an answer."""
    if reply.status == 200 and reply.media_type == "text/html":
        page = keys.cleaned(reply.body.decode(errors="replace"))
        raise EnvironmentFault(
            f"{client.endpoint.url} answers with a web page ({reply.media_type}): {page}",
            hint=ADDRESS_HINT,
        )


def refuse_all(client: Client, status: int, reason: str, model: str) -> None:
    """Raise an error for an answer that each other item would get, too."""
    where = client.endpoint.origin
    if status in (401, 403):
        raise EnvironmentFault(
            f"{where} {'does not accept the key' if client.key else 'wants a key'}: {reason}",
            hint=f"Write a line `{client.endpoint.host} = KEY` into a file of mode 0600, and name "
            "it with --endpoint-keys",
        )
    if status == 404:
        raise UsageError(
            f"{client.endpoint.url} has no model {model}, or no chat completions: {reason}",
            hint="Check the name after openai:, and the address, which usually ends with /v1",
        )
    if status < 400:
        what = "redirects to another address, which is not followed"
        raise EnvironmentFault(
            f"{where} {what if status >= 300 else 'sends no answer'}: {reason}",
            hint="Give the address of the server itself with --endpoint",
        )

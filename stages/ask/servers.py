"""Sends requests to servers, and chooses the server of each. Follows no redirects, uses no proxy,
reads bounded answers, and keeps what each server states about its model."""

import asyncio
import email.utils
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import h11

from artifacts.disk.json_shapes import Json
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.remote.endpoints import Endpoint, EndpointKeys

CONNECT_SECONDS = 10.0
HEAD_SECONDS = 600.0
"""Longest wait for the begin of an answer: a server may have many requests in its queue."""
BODY_SECONDS = 30.0
"""Longest time from the begin of an answer to its end."""
MAX_BODY = 4 << 20
"""Largest answer in bytes."""
READ_BYTES = 1 << 16
MAX_WAIT = 300.0
"""Longest wait in seconds for a server that requests one."""
CREDIBLE_WAIT = 3600.0
"""A server that requests a longer wait in seconds is taken to request none."""
SHOWN_WAIT_SECONDS = 5.0
"""A wait longer than this is said."""
ADDRESS_HINT = "Check that --endpoint is the address of a model server; it usually ends with /v1"
CUT_HINT = "Look at the log of the server, and of a proxy before it; then try again"
ECHO = "x-request-id"
"""Header with the name of a request. Some servers repeat it in their answer."""
START = 8
"""Requests at once at the beginning."""
QUICK_SECONDS = 10.0
"""With a shorter mean latency the limit grows four times, otherwise twice."""
PATIENCE = 120.0
"""Seconds for which no server may be reached, or all be overloaded, before a run ends."""
MAX_SILENCE = 1800.0
"""Seconds without an answer before a run ends, with all pauses that servers request."""
PAUSE = (0.5, 15.0)
"""First and longest pause in seconds after a server was overloaded or not reached."""
OVERLOADED = (408, 425, 429, 503)
TRIES = 8
"""Requests before a run begins, to a server that is overloaded."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer. `wait` is the seconds that it requests, if any; `echo` the name of the
    request that is answered, and `media_type` that of the body; both are empty if not stated."""

    status: int
    body: bytes
    wait: float
    echo: str
    media_type: str


class NoReply(Exception):
    """No answer, or not a whole one. `reached` says whether the server was reached."""

    def __init__(self, message: str, *, reached: bool = True, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or (CUT_HINT if reached else "Start the server, or check the address")
        self.reached = reached


class Client:
    """Sends requests to one server, each on a connection of its own, so that no answer can belong
    to an earlier request. h11 alone has no redirects, proxies, cookies or .netrc files. With httpx2
    the stage takes 1.8 times the CPU time, and an answer is read only after the whole request is
    sent."""

    def __init__(
        self, endpoint: Endpoint, keys: EndpointKeys, say: Callable[[str], object] = bool
    ) -> None:
        self.endpoint, self._say = endpoint, say
        self._keys, self.key = keys, keys.key(endpoint)
        self._headers = [
            ("host", endpoint.netloc),
            ("connection", "close"),
            ("accept", "application/json"),
            ("accept-encoding", "identity"),
            *([("authorization", f"Bearer {self.key}")] if self.key else []),
        ]
        self._tls = ssl.create_default_context() if endpoint.scheme == "https" else None

    def say_wait(self, seconds: float, why: str = "is overloaded") -> None:
        """Say that the server gets nothing for so long, unless the wait is short."""
        if seconds > SHOWN_WAIT_SECONDS:
            at = time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))
            self._say(f"{self.endpoint.url} {why}: next try at {at}, in {seconds:.0f} s")

    async def get(self, path: str) -> Reply:
        """Return a page of the server. Raises NoReply."""
        return await self._send("GET", path, [], b"", CONNECT_SECONDS)

    async def post(self, body: bytes, name: str = "") -> Reply:
        """Send a request for a chat completion, with `name` in a header. Raises NoReply."""
        more = [("content-type", "application/json"), ("content-length", str(len(body)))]
        path = f"{self.endpoint.path}/chat/completions"
        return await self._send("POST", path, [*more, (ECHO, name)], body, HEAD_SECONDS)

    async def _send(
        self, method: str, path: str, more: list[tuple[str, str]], body: bytes, seconds: float
    ) -> Reply:
        http, reader = h11.Connection(h11.CLIENT), _Reader()
        head = h11.Request(method=method, target=path, headers=[*self._headers, *more])
        events = (head, h11.Data(data=body), h11.EndOfMessage())
        request, transport = b"".join(http.send(event) or b"" for event in events), None
        try:
            async with asyncio.timeout(CONNECT_SECONDS) as deadline:
                transport, _ = await asyncio.get_running_loop().create_connection(
                    lambda: asyncio.StreamReaderProtocol(reader),
                    self.endpoint.host,
                    self.endpoint.port,
                    ssl=self._tls,
                )
                transport.write(request)  # not waited for: an answer may come before its end
                del request
                return await _read_reply(http, reader, deadline, seconds)
        except TimeoutError:
            raise NoReply("no whole answer in time", reached=transport is not None) from None
        except (OSError, h11.ProtocolError) as error:
            # The text may quote what the server sent.
            reason = self._keys.cleaned(str(error))[:100] or type(error).__name__
            what = "the connection broke" if transport else "no connection"
            raise NoReply(f"{what} ({reason})", reached=transport is not None) from None
        finally:
            if transport:
                transport.abort()


class _Reader(asyncio.StreamReader):
    """Gives what has arrived before it raises what broke the connection."""

    _broken: OSError | None = None

    def set_exception(self, exc: Exception) -> None:
        self._broken = exc if isinstance(exc, OSError) else OSError(str(exc))
        self.feed_eof()

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        if self._broken and not data:
            raise self._broken
        return data


async def _read_reply(
    http: h11.Connection, reader: _Reader, deadline: asyncio.Timeout, seconds: float
) -> Reply:
    """Return the reply on a connection. The deadline moves on now, and when the reply begins.
    Raises NoReply, OSError, ProtocolError."""
    now = asyncio.get_running_loop().time
    deadline.reschedule(now() + seconds)
    status, headers, body = 0, dict[bytes, bytes](), bytearray()
    while type(event := http.next_event()) is not h11.EndOfMessage:
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(READ_BYTES))
        elif type(event) is h11.Response:
            status, headers = event.status_code, dict(event.headers)
            deadline.reschedule(now() + BODY_SECONDS)
        elif type(event) is h11.Data:
            body += event.data
            if len(body) > MAX_BODY:
                message = f"the answer is larger than {MAX_BODY >> 20} MiB"
                raise NoReply(message, hint=ADDRESS_HINT)
        elif type(event) is not h11.InformationalResponse:
            raise NoReply("the server wants another protocol", hint=ADDRESS_HINT)
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise NoReply(
            "the answer is compressed, which was not requested",
            hint="Turn off compression in the server, or in a proxy before it",
        )
    names = (b"retry-after", ECHO.encode(), b"content-type")
    wait, echo, kind = (headers.get(name, b"").decode("latin-1") for name in names)
    media_type = kind.partition(";")[0].strip().lower()[:100]
    return Reply(status, bytes(body), _wait(wait), echo[:100], media_type)


def _wait(text: str) -> float:
    """Return the seconds of a header Retry-After; 0: it states none that is credible."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return min(MAX_WAIT, seconds) if 0 < seconds <= CREDIBLE_WAIT else 0.0


class RequestPace:
    """The limit of one server. A round is as many answers as the limit, all to requests that were
    sent in it. Its throughput is the limit divided by their mean latency (Little's law), so that
    requests which were sent in a burst, or before the round, do not distort it. The next limit is
    several times larger at first, then larger by an eighth, as long as it brings at least half of
    the throughput that it should; otherwise the limit before returns. An overloaded server gets
    half as many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._fast = True
        self._best = (0, 0.0)
        """The largest limit that was worth it, and its answers a second."""
        self._cut_at = 0.0
        self._begin(START, 0.0)

    def _begin(self, limit: int, now: float) -> None:
        self.limit = self._left = max(1, min(limit, self._most))
        self._began, self._latency = now, 0.0

    def succeeded(self, sent: float, now: float) -> None:
        """Count the answer to a request that was sent at a time."""
        if sent < self._began:
            return
        self._left, self._latency = self._left - 1, self._latency + now - sent
        if self._left > 0:
            return
        size, (before, best) = self.limit, self._best
        rate = size * size / max(self._latency, 1e-9)
        if size > before > 0 and rate < best * (1 + (size / before - 1) / 2):
            self._fast = False
            self._begin(before, now)
        else:
            self._best = (size, rate)
            times = 4 if self._latency < QUICK_SECONDS * size else 2
            self._begin(size * times if self._fast else size + max(1, size // 8), now)

    def overloaded(self, sent: float, now: float) -> None:
        """Count an answer that the server is overloaded. Requests that were sent before the last
        decrease do not count again."""
        if sent >= self._cut_at:
            self._fast, self._cut_at, self._best = False, now, (0, 0.0)
            self._begin(self.limit // 2, now)


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
        self._pauses, self.out_since, self.silent_since = 0, None, None

    def silence(self, now: float) -> float:
        """Return the seconds without an answer at its next try."""
        since = self.silent_since
        return 0.0 if since is None else max(now, self.paused_until) - since

    def answered(self, model: str, fingerprint: str) -> None:
        """Note a caption and what the server states. Raises EnvironmentFault for a change."""
        self.reached()
        self.answers += 1
        now = [model, fingerprint]
        if self.seen and self.seen != now:
            before, after = (" ".join(filter(None, identity)) for identity in (self.seen, now))
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
            ModelServer(Client(endpoint, keys, say), at_once, seen.get(endpoint.url, ()))
            for endpoint in endpoints
        ]
        self._waiting: deque[tuple[asyncio.Future[ModelServer], ModelServer | None]] = deque()
        """Requests that wait for a server, in order, and the server each would rather not get."""
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
            elif server := self._free(last, now):
                server.in_flight += 1
                self._waiting.popleft()
                turn.set_result(server)
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

    def notes(self) -> dict[str, Json]:
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
    """Return the reply to a request, sent a few times if overloaded. Raises NoReply."""
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

"""Sends requests to one server. Follows no redirects, uses no proxy, and reads bounded answers."""

import asyncio
import email.utils
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import h11

from artifacts.endpoints import Endpoint, EndpointKeys

CONNECT_SECONDS = 10.0
HEAD_SECONDS = 600.0
"""Longest wait for the begin of an answer: a server may have many requests in its queue."""
BODY_SECONDS = 30.0
"""Longest time from the begin of an answer to its end."""
MAX_BODY = 4 << 20
"""Largest answer in bytes."""
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
    to an earlier request. HTTP by h11 alone takes a quarter of the CPU time of a whole HTTP client,
    and has no redirects, proxies, cookies or .netrc files."""

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
        head = h11.Request(method=method, target=path, headers=[*self._headers, *more])
        http, endpoint = h11.Connection(h11.CLIENT), self.endpoint
        events = (head, h11.Data(data=body), h11.EndOfMessage())
        deadline = asyncio.timeout(CONNECT_SECONDS)
        sent = (http.send(event) or b"" for event in events)
        # Only the exchange holds the whole request; it drops it when it is sent.
        exchange = _Exchange(http, b"".join(sent), deadline, seconds)
        try:
            async with deadline:
                await asyncio.get_running_loop().create_connection(
                    lambda: exchange, endpoint.host, endpoint.port, ssl=self._tls
                )
                return await exchange.reply
        except TimeoutError:
            raise NoReply("no whole answer in time", reached=exchange.reached) from None
        except (OSError, h11.ProtocolError) as error:
            # The text may quote what the server sent.
            reason = self._keys.cleaned(str(error))[:100] or type(error).__name__
            what = "the connection broke" if exchange.reached else "no connection"
            raise NoReply(f"{what} ({reason})", reached=exchange.reached) from None
        finally:
            exchange.close()


class _Exchange(asyncio.Protocol):
    """One request and its reply on a connection of their own. A protocol takes less CPU time than
    streams. The deadline moves on when there is a connection, and when an answer begins."""

    def __init__(
        self, http: h11.Connection, request: bytes, deadline: asyncio.Timeout, seconds: float
    ) -> None:
        self._http, self._request = http, request
        self._deadline, self._seconds = deadline, seconds
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._body, self._status, self._headers = bytearray(), 0, dict[bytes, bytes]()

    @property
    def reached(self) -> bool:
        """Whether there was a connection."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.write(self._request)
        self._request = b""
        self._wait_for(self._seconds)

    def eof_received(self) -> None:
        """Read an answer that ends with the connection, even if the request is still being sent."""
        self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        """Read what has arrived; empty: the server has closed the connection."""
        if not self.reply.done():
            try:
                self._http.receive_data(data)
                self._read()
            except (NoReply, h11.ProtocolError) as error:
                self.reply.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        """End the reply, if it has not ended."""
        if error and not self.reply.done():
            self.reply.set_exception(error if isinstance(error, OSError) else OSError(str(error)))
        self.data_received(b"")

    def close(self) -> None:
        """Close the connection, and read nothing more."""
        self.reply.cancel()
        if self._transport:
            self._transport.abort()

    def _wait_for(self, seconds: float) -> None:
        """Move the deadline, unless it has just passed."""
        if not self._deadline.expired():
            self._deadline.reschedule(self.reply.get_loop().time() + seconds)

    def _read(self) -> None:
        """Read the events that are complete. Raises NoReply and ProtocolError."""
        while (event := self._http.next_event()) is not h11.NEED_DATA:
            if type(event) is h11.Response:
                self._status, self._headers = event.status_code, dict(event.headers)
                self._wait_for(BODY_SECONDS)
            elif type(event) is h11.Data:
                self._body += event.data
                if len(self._body) > MAX_BODY:
                    raise NoReply(
                        f"the answer is larger than {MAX_BODY >> 20} MiB", hint=ADDRESS_HINT
                    )
            elif type(event) is h11.EndOfMessage:
                return self.reply.set_result(self._whole())
            elif type(event) is not h11.InformationalResponse:
                raise NoReply("the server wants another protocol", hint=ADDRESS_HINT)

    def _whole(self) -> Reply:
        """Return the reply that has ended. Raises NoReply."""
        if self._headers.get(b"content-encoding", b"identity") != b"identity":
            raise NoReply(
                "the answer is compressed, which was not requested",
                hint="Turn off compression in the server, or in a proxy before it",
            )
        names = (b"retry-after", ECHO.encode(), b"content-type")
        wait, echo, kind = (self._headers.get(name, b"").decode("latin-1") for name in names)
        return Reply(
            self._status,
            bytes(self._body),
            _wait(wait),
            echo[:100],
            kind.partition(";")[0].strip().lower()[:100],
        )


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

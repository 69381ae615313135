"""Listens on an address, and serves an application there with limits on request heads.

The servers of `penstock serve` and of the studio limit the size and time of request heads, before
any token is checked.
"""

import asyncio
import contextlib
import errno
import functools
import logging
import mimetypes
import socket
import sys
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from artifacts.errors import EnvironmentFault, UsageError
from flows.interfaces.serve.refusals import json_bytes


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a listening socket. Raises UsageError, EnvironmentFault."""
    mimetypes.init()  # otherwise the first request waits for its files
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OverflowError as error:
            raise UsageError(f"invalid --port {port}", hint="Give 0 to 65535") from error
        except OSError as error:
            busy = error.errno == errno.EADDRINUSE
            raise EnvironmentFault(
                f"cannot listen on {host}:{port} ({error.strerror or error})",
                hint="Another program uses it: give another --port"
                if busy
                else "Check --host and --port",
            ) from error
        yield listener


def address_of(listener: socket.socket) -> str:
    """Return the server's URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class UnsignalledServer(uvicorn.Server):
    """A server that installs no signal handlers. Its caller handles signals."""

    def __init__(self, app: ASGIApp, connections: int, **options: Any) -> None:
        """Answer with `app`, in at most so many `connections`; `options` are uvicorn's."""
        config = uvicorn.Config(
            app,
            http=functools.partial(LimitedProtocol, connections),  # type: ignore[arg-type]
            h11_max_incomplete_event_size=HEAD_BYTES,
            lifespan="off",
            ws="none",
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            **options,
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


HEAD_BYTES = 1 << 16
"""Bytes of a head, or of the fields behind a body, beyond which h11 waits for no more of it."""
HEAD_SECONDS = 10.0
"""Time from a connection to the end of its first request's head."""
KEEP_ALIVE_SECONDS = 30
"""Time from an answer to the end of the next request's head."""
READ_SECONDS = 20.0
"""Time in which a client must read some of its response. A slower client is disconnected."""
DROP_SECONDS = 10.0
"""Time in which a client that was answered before it had sent its body may go on sending."""


class LimitedProtocol(H11Protocol):
    """One connection, with time limits."""

    _silent_since = 0.0
    _unread: asyncio.TimerHandle | None = None
    """Ends the connection if its response stays unread."""

    def __init__(self, connections: int, **options: Any) -> None:
        """Keep at most so many `connections` open; `options` are uvicorn's."""
        super().__init__(**options)
        self._max_connections = connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Draining(transport, self.conn)))
        self._silent_since, give_up = self.loop.time(), self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(HEAD_SECONDS, give_up)
        others = cast("set[LimitedProtocol]", self.connections) - {self}
        silent = [p for p in others if not p.cycle or p.cycle.response_complete]
        if len(others) >= self._max_connections and silent:
            longest = min(silent, key=lambda p: p._silent_since)
            self.connections.discard(longest)
            longest.transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)

    def _unset_keepalive_if_required(self) -> None:
        """Stop the wait for a request when its head is whole; uvicorn would at its first byte."""
        if self.conn.our_state is h11.SEND_RESPONSE:
            super()._unset_keepalive_if_required()

    def _unsupported_upgrade_warning(self) -> None:
        """Ignore an offer of another protocol in silence (RFC 9110, 7.8)."""

    def on_response_complete(self) -> None:
        """Close the connection after a request of two lengths: a proxy may have read the other, and
        what follows would be somebody's words as another's request (RFC 9112, 6.1)."""
        self._silent_since = self.loop.time()
        if {b"transfer-encoding", b"content-length"} <= {name for name, _ in self.headers}:
            self.transport.close()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.resume_writing()
        super()._unset_keepalive_if_required()

    def send_400_response(self, msg: str) -> None:
        """Refuse in JSON what h11 has just raised an error for, unless a response has begun."""
        error = sys.exception()
        status = HTTPStatus(getattr(error, "error_status_hint", 400))
        hint = f"Check its head: at most {HEAD_BYTES >> 10} KiB, no coding of the body but chunked"
        body = json_bytes({"error": f"the request is not valid HTTP: {error}", "hint": hint})
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%b" % (status, status.phrase.encode(), len(body), body)
            )
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


class _Draining:
    """A transport whose `close`, while the client still sends, ends its own side alone. What comes
    is dropped for a while. Otherwise the kernel would reset the connection, and the client would
    not get its answer."""

    def __init__(self, transport: asyncio.Transport, conn: h11.Connection) -> None:
        self._transport, self._conn = transport, conn
        self._is_draining = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._is_draining or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing() or self._conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            self._transport.close()
            return
        self._is_draining = True
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(DROP_SECONDS, self._transport.abort)

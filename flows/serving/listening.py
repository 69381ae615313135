"""Listens on an address, and serves an application there with limits on request heads.

The servers of `penstock serve` and of the studio limit the size and time of request heads, before
any token is checked.
"""

import asyncio
import contextlib
import errno
import logging
import mimetypes
import socket
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl

from artifacts.errors import EnvironmentFault, UsageError
from flows.serving.refusals import json_bytes


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

    def __init__(self, app: Any, connections: int, **options: Any) -> None:
        """Answer with `app`, in at most so many `connections`; `options` are uvicorn's."""
        config = uvicorn.Config(
            app,
            http=limited_protocol(connections),
            lifespan="off",
            ws="none",
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            **options,
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as BaseProtocol
except ImportError:
    from uvicorn.protocols.http.h11_impl import H11Protocol as BaseProtocol  # type: ignore[assignment]

HEAD_BYTES = 1 << 16
"""Largest head, from the first byte of its message; trailers count as a head of their own."""
PIECE_BYTES = 1 << 12
"""Bytes that are parsed at once. A head that begins within a piece may exceed the limit by them."""
LINGER_SECONDS = 2.0
"""Time in which a refused client may read why. What it sends meanwhile is discarded."""
DROP_SECONDS = 10.0
"""Time in which a client that was answered before it had sent its body may go on sending."""
DROPPED_BYTES = 256 << 20
"""Bytes that it may send meanwhile. They are not kept."""
READ_SECONDS = 20.0
"""Time in which a client must read some of its response. A slower client is disconnected."""
HEAD_SECONDS = 10.0
"""Time in which a request's head must arrive, counted from the connection or from its first
byte."""
LOOK_SECONDS = 1.0
"""Time between two looks whether a client that sends no more has left."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSED = 7
"""The state of a connection that was reset, in the kernel's `tcp_states.h`."""


def _refusal(status: int, error: str, hint: str) -> bytes:
    """Return an answer that closes the connection."""
    body, phrase = json_bytes({"error": error, "hint": hint}), HTTPStatus(status).phrase.encode()
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"content-length: %d\r\n\r\n%b" % (status, phrase, len(body), body)
    )


class HeadLimited(BaseProtocol):
    """One connection. It is parsed in pieces, and not beyond a request that waits for the response
    to an earlier one."""

    _head = 0
    """Bytes since a head or a message ended, or a body went on."""
    _rest = b""
    """What is not parsed yet; reading is paused meanwhile."""
    _is_refused = False
    _answer = _refusal(
        431,
        f"the head of the request is larger than {HEAD_BYTES >> 10} KiB",
        "Send fewer and shorter header fields, and a shorter address",
    )
    """What a refused request is answered."""
    _parsed = 0
    """Bytes of the last piece that belong to a head whose Upgrade is ignored."""
    _ignores_upgrade = False
    """Whether the head that was parsed last is to be parsed again, without Upgrade."""
    _is_half_closed = False
    """Whether the client sends no more, and may still read."""

    def __init__(self, config: Any, *given: Any, **named: Any) -> None:
        # The limit of h11 is smaller, and its response another.
        config.h11_max_incomplete_event_size = 2 * HEAD_BYTES
        super().__init__(config, *given, **named)
        self._h11: h11.Connection | None = getattr(self, "conn", None)

    def connection_made(self, transport: Any) -> None:
        self._draining = _Draining(transport, self._is_receiving)
        super().connection_made(self._draining)  # type: ignore[arg-type]
        self.flow = _Flow(self.transport, self._parse_rest_soon)

    def _is_receiving(self) -> bool:
        """Return whether the client may still be sending the body of its request."""
        return self.cycle is not None and bool(self.cycle.more_body)

    def data_received(self, data: bytes) -> None:
        if self._draining.drops(data):
            return
        data, self._rest = self._rest + data, b""
        at = 0
        while at < len(data) and not (self._is_refused or self.transport.is_closing()):
            if self._h11.their_state is h11.DONE if self._h11 else self.pipeline:
                self._rest = data[at:]
                self.flow.pause_reading()
                return
            piece = data[at : at + min(PIECE_BYTES, HEAD_BYTES - self._head)]
            if not piece:
                self._refuse()
                return
            at += len(piece)
            self._head += len(piece)
            super().data_received(piece)
            if self._ignores_upgrade:
                at += self._parsed - len(piece)
                self._parse_without_upgrade()
            if self._h11:
                self._head = len(self._h11.trailing_data[0])

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether the connection stays open: the client waits for a response. Who closed
        both sides says the same, but resets the connection if anything is sent. So an interim
        response is, which every client of HTTP/1.1 must skip, and the work for one that left is
        dropped."""
        cycle = self.cycle
        is_whole = cycle is not None and not (cycle.more_body or cycle.response_complete)
        if not is_whole or self.transport.is_closing():
            return False
        self._is_half_closed = True
        is_first = self._h11 is not None or not self.pipeline
        if is_first and not cycle.response_started and cycle.scope["http_version"] != "1.0":
            self.transport.write(CONTINUE)
        self._look()
        return True

    def _look(self) -> None:
        """End a half-closed connection that was reset: no read of it would show that."""
        if self.transport.is_closing():
            return
        connection = self.transport.get_extra_info("socket")
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == CLOSED:
            self.transport.abort()
        self.loop.call_later(LOOK_SECONDS, self._look)

    def _parse_rest_soon(self) -> bool:
        """Return whether there is something to parse before more is read."""
        if self._rest:
            self.loop.call_soon(self._parse_rest)
        return bool(self._rest)

    def _parse_rest(self) -> None:
        data, self._rest = self._rest, b""
        self.flow.resume_reading()
        self.data_received(data)

    def on_headers_complete(self) -> None:
        self._head = 0
        offered = {value.lower() for name, value in self.headers if name == b"upgrade"}
        self._ignores_upgrade = bool(offered) and not self._should_upgrade()
        if len(parts := self.url.split(b"/", 3)) > 2 and parts[0].endswith(b":"):
            # The host of an absolute target counts, whatever Host says (RFC 9112, 3.2.2).
            self.headers[:] = [each for each in self.headers if each[0] != b"host"]
            self.headers.append((b"host", parts[2]))
        if not self._ignores_upgrade:
            super().on_headers_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Note where the head ends: this is called while httptools' HttpParserUpgrade is handled,
        which says it."""
        self._parsed = getattr(sys.exception(), "args", (0,))[0]

    def _parse_without_upgrade(self) -> None:
        """Parse a head again, without the Upgrade that this server ignores (RFC 9110, 7.8): after
        one httptools skips the body."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        super().data_received(b"\r\n".join([*lines, b"", b""]))

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head = 0
        if self._ignores_upgrade:
            return
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_refused and not self.transport.is_closing():
            self._refuse()
        elif self._is_half_closed and self.cycle.response_complete:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser has just raised an error for."""
        error, given = sys.exception(), getattr(self, "headers", None) or ()
        status, why, hint = 400, f"the request is not valid HTTP: {error}", "Check its head"
        is_coded = any(n == b"transfer-encoding" and v.lower() != b"chunked" for n, v in given)
        is_coded |= getattr(error, "error_status_hint", 0) == 501
        if is_coded or "nvalid `Transfer-Encoding`" in why:
            status, why = 501, "the transfer coding is not supported"
            hint = "Send the body as it is, or chunked"
        self._answer = _refusal(status, why, hint)
        self._refuse()

    def _refuse(self) -> None:
        """Send the refusal and close, after the responses to earlier requests."""
        self._is_refused, cycle = True, self.cycle
        if not self._h11 and self.pipeline:
            return
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                return
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        self.transport.write(self._answer)
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)


class _Draining:
    """A transport whose `close`, while the client still sends, ends its own side alone. What comes
    is dropped, within limits of time and size. Otherwise the kernel would reset the connection, and
    the client would not get its answer."""

    def __init__(self, transport: Any, is_receiving: Callable[[], bool]) -> None:
        self._transport, self._is_receiving = transport, is_receiving
        self._left = 0
        """Bytes that are dropped before the connection is cut."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def drops(self, data: bytes) -> bool:
        """Return whether the answer was sent, and this is to be dropped."""
        if not self._left:
            return False
        self._left = max(1, self._left - len(data))
        if self._left == 1:
            self._transport.abort()
        return True

    def is_closing(self) -> bool:
        return bool(self._left or self._transport.is_closing())

    def close(self) -> None:
        if self._left or not self._is_receiving() or self._transport.is_closing():
            self._transport.close()
            return
        self._left = DROPPED_BYTES
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(DROP_SECONDS, self._transport.abort)


def limited_protocol(max_connections: int) -> type[asyncio.Protocol]:
    """Return the protocol with time limits. Beyond `max_connections`, idle ones
    are closed."""
    silent: dict[asyncio.Protocol, asyncio.Transport] = {}
    """Connections without a request in progress, longest idle first."""

    class LimitedProtocol(HeadLimited):
        """One connection, with time limits."""

        _timer: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        """Ends the connection if its response stays unread."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            while silent and len(self.connections) > max_connections:
                other = next(iter(silent))
                self.connections.discard(other)
                silent.pop(other).abort()
            silent[self] = transport
            self._set_idle()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._set_busy()
            elif self._timer is None and (self.cycle is None or self.cycle.response_complete):
                self._set_idle()

        def on_response_complete(self) -> None:
            silent[self] = self.transport
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_unread_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._set_busy()
            self._stop_unread_timer()
            super().connection_lost(exc)

        def _stop_unread_timer(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def _set_busy(self) -> None:
            silent.pop(self, None)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _set_idle(self) -> None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

        def _give_up(self) -> None:
            self._timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return LimitedProtocol


class _Flow(FlowControl):
    """Flow control that asks first whether more may be read."""

    def __init__(self, transport: Any, is_busy: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._is_busy = is_busy

    def resume_reading(self) -> None:
        if not self._is_busy():
            super().resume_reading()

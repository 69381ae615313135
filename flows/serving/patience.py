"""Closes connections over which no whole request comes in time, and bounds how many are open; knows
no route.

uvicorn waits for ever for the end of a request's head, so who opens many connections and says
little on each would have them all. Its own bound refuses whoever comes next; here the connection
makes room that has been silent for longest. Who asks and never reads the answer is left, too.
"""

import asyncio
from typing import Any

READ_SECONDS = 20.0
"""Time in which a client reads some of what is written to it; who does not is left."""
HEAD_SECONDS = 10.0
"""Time in which the head of a request comes, from when its connection was opened or its first
byte."""


def patient_protocol(most: int) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol, with less patience. Beyond so many connections, silent ones are
    closed."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Chosen
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as Chosen  # type: ignore[assignment]

    silent: dict[asyncio.Protocol, asyncio.Transport] = {}
    """Connections on which no request is being answered, the one that is so for longest first."""

    class Patient(Chosen):
        """One connection."""

        _timer: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        """Ends the connection unless what was written to it is read by then."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            while silent and len(self.connections) > most:
                other = next(iter(silent))
                self.connections.discard(other)
                silent.pop(other).abort()
            silent[self] = transport
            self._wait()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._rest()
            elif self._timer is None and (self.cycle is None or self.cycle.response_complete):
                self._wait()

        def on_response_complete(self) -> None:
            silent[self] = self.transport
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._read()

        def connection_lost(self, exc: Exception | None) -> None:
            self._rest()
            self._read()
            super().connection_lost(exc)

        def _read(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def _rest(self) -> None:
            silent.pop(self, None)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _wait(self) -> None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

        def _give_up(self) -> None:
            self._timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Patient

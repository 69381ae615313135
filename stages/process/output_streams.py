"""Output streams that end no work: they drop text that cannot be written. Every command imports
this module first, so it imports no other of the program.
"""

import contextlib
import errno
import os
import sys
import termios
from collections.abc import Callable, Iterator
from typing import IO, Any

READER_GONE = (errno.EPIPE, errno.ECONNRESET)
"""Errors of a pipe or a socket whose reader has ended, as in `| head -1`."""
_failed_writes = 0


def failed_writes() -> int:
    """Return how often this process could not write to an output stream."""
    return _failed_writes


class LastingStream:
    """A stream of text whose errors are noted and not raised. Where nobody can read any more, the
    descriptor leads to /dev/null from then on. A full disk is tried again at each write."""

    def __init__(self, to: IO[str]) -> None:
        self._to = to
        self.error: OSError | None = None
        """Why a text is missing that somebody may read."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._to, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it. Return its length."""
        self._tried(self._to.write, text)
        return len(text)

    def flush(self) -> None:
        """Write what is in the buffer, or keep it there."""
        self._tried(self._to.flush)

    def end(self) -> None:
        """Write what is in the buffer, or drop it, so that the interpreter's own flush succeeds."""
        if not (self._to.closed or self._tried(self._to.flush)):
            self._lead_nowhere()

    def _tried(self, write: Callable[..., object], *text: str) -> bool:
        global _failed_writes
        try:
            write(*text)
        except OSError as error:
            _failed_writes += 1
            if error.errno in READER_GONE or (error.errno == errno.EIO and self._has_hung_up()):
                self._lead_nowhere()
            else:
                self.error = self.error or error
            return False
        return True

    def _has_hung_up(self) -> bool:
        try:
            termios.tcgetattr(self._to)
        except termios.error as error:
            return bool(error.args[0] == errno.EIO)  # other streams give another error
        return False

    def _lead_nowhere(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, self._to.fileno())
            os.close(nowhere)
            self._to.flush()


def lasting(to: IO[str]) -> IO[str]:
    """Return a stream that drops what cannot be written to `to`."""
    return to if isinstance(to, LastingStream) else LastingStream(to)  # type: ignore[return-value]


@contextlib.contextmanager
def lasting_output() -> Iterator[LastingStream]:
    """Let nothing in the block fail because of standard streams. Yield standard output."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = streams = lasting(sys.stdout), lasting(sys.stderr)
    try:
        yield streams[0]  # type: ignore[misc]
    finally:
        for stream in streams:
            stream.end()  # type: ignore[attr-defined]
        sys.stdout, sys.stderr = before

"""Logs the requests of a server, a line for each, in a file that may be rotated meanwhile."""

import os
import sys
from contextlib import suppress
from urllib.parse import quote

from artifacts.errors import EnvironmentFault
from flows.core.machine.versions import now


class AccessLog:
    """One line per request: time, name of the token, method, path, status, bytes and milliseconds
    of the answer. Without a path it writes nothing."""

    def __init__(self, path: str = "") -> None:
        """Open the log, which is added to; `-` is standard error. Raises EnvironmentFault."""
        self._path, self._file = path, -1
        try:
            if path == "-":
                self._file = os.dup(sys.stderr.fileno())
            elif path:
                self._file = _opened(path)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise EnvironmentFault(
                f"--access-log {path} cannot be written: {why}",
                hint="Give a file in a folder that you may write to",
            ) from error

    def note(
        self, sender: str, method: str, path: bytes, status: int, size: int, seconds: float
    ) -> None:
        """Write a line. A full disk costs lines, and no request."""
        if self._file < 0:
            return
        route = quote(path.partition(b"?")[0], safe="/%:@!$&'()*+,;=~")
        line = f"{now()} {sender or '-'} {method} {route} {status} {size} {1000 * seconds:.1f}\n"
        with suppress(OSError):
            self._follow()
        with suppress(OSError):
            os.write(self._file, line.encode())

    def _follow(self) -> None:
        """Open the log again if its path leads to another file, or to none: it was rotated. Raises
        OSError, and then goes on with the old file."""
        if self._path == "-":
            return
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._file)):
                return
        file = _opened(self._path)
        os.close(self._file)
        self._file = file

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _opened(path: str) -> int:
    """Open a file to add to, without waiting for the reader of a FIFO. Raises OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
    file = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(file, True)
    return file

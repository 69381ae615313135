"""Terminals of a given width, and what programs showed on them."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3|4|9|10)[0-8][0-9;]*m")


class Terminal:
    """A terminal of so many columns, and all that was written to it."""

    def __init__(self, columns: int) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.to: IO[str] = os.fdopen(self.theirs, "w")
        self.pieces: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # nobody holds the other end any more
            while read := os.read(self._ours, 1 << 16):
                self.pieces.append(read.decode(errors="replace"))

    def reads(self) -> bool:
        return self._reader.is_alive()

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def close(self) -> str:
        self.to.close()
        self._reader.join(5)
        os.close(self._ours)
        return "".join(self.pieces)


class Dialogue:
    """A program on a terminal of its own, what it has shown so far, and what is typed there."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self._seen = Terminal(240)
        for stream in ("stdin", "stdout", "stderr"):
            options[stream] = self._seen.theirs
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            command, start_new_session=True, **options
        )
        self._seen.to.close()

    @property
    def text(self) -> str:
        return "".join(self._seen.pieces)

    def shows(self, pattern: str, seconds: float) -> re.Match[str] | None:
        """Where it comes to show this in time."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.text)) is None and time.monotonic() < deadline:
            if self.process.poll() is not None and not self._seen.reads():
                break
            time.sleep(0.02)
        return found

    def type(self, keys: bytes) -> None:
        self._seen.type(keys)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._seen.close()


@contextlib.contextmanager
def terminal(columns: int) -> Iterator[Terminal]:
    made = Terminal(columns)
    yield made
    if not made.to.closed:
        made.close()


@dataclass(frozen=True, slots=True)
class Recording:
    """What a command showed, and the code that it ended with."""

    text: str
    code: int

    @property
    def lines(self) -> list[str]:
        """The lines that stood there at any time."""
        return shown(self.text)

    @property
    def kept(self) -> list[str]:
        """Those of them that stayed."""
        rows, at, column = [""], 0, 0
        for part in re.split(f"({CONTROL.pattern}|\r|\n)", self.text):
            if part == "\n":
                at += 1
                rows += [""] * (at == len(rows))
            elif part == "\r":
                column = 0
            elif part == "\x1b[2K":
                rows[at] = ""
            elif found := re.fullmatch(r"\x1b\[(\d+)A", part):
                at -= int(found[1])
            elif not CONTROL.fullmatch(part):
                rows[at] = rows[at][:column].ljust(column) + part + rows[at][column + len(part) :]
                column += len(part)
        return [row.rstrip() for row in rows if row.strip()]


def shown(text: str) -> list[str]:
    """The lines that stood there at any time, without control characters."""
    return [line for part in text.split("\r") for line in CONTROL.sub("", part).split("\n") if line]


def too_wide(lines: Sequence[str], columns: int) -> list[str]:
    """The lines that a terminal would break inside a word: it would have to break one of several
    words. One that is alone and longer than the terminal cannot be helped."""
    return [line for line in lines if len(line) > columns and len(line.split()) > 1]


def words(lines: Sequence[str]) -> set[str]:
    """The words of some lines, without figures."""
    every = {word for line in lines for word in line.split()}
    return {word for word in every if re.fullmatch(r"[A-Za-z][a-z-]{2,}", word)}

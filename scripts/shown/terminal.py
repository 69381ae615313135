"""Runs a command on a terminal of 80 columns, as somebody would see it."""

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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROWS, COLUMNS = 24, 80
ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Z0-9]|[=>78])")
WORK_BEGINS = re.compile(r"cutting frames|encoding|captioning|http://127\.")
"""What is waited for before Ctrl-C is pressed."""
TOO_LATE = 124
"""Exit code of a command that did not end in time, as of `timeout`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a command did."""

    code: int
    text: str
    """All that it wrote to the terminal."""
    seconds: float


def run_on_terminal(
    script: str, folder: Path, env: Mapping[str, str], *, seconds: float, stopped: bool = False
) -> Outcome:
    """Run a line of bash; with `stopped`, Ctrl-C is pressed as soon as it works."""
    began = time.monotonic()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        # Who was started in the background hears no Ctrl-C, and its children neither.
        ["env", "--default-signal=INT", "bash", "-c", script],
        cwd=folder,
        env=dict(env),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    read: list[bytes] = []
    reader = threading.Thread(target=_read, args=(ours, read))
    reader.start()
    late = False
    while process.poll() is None and not late:
        time.sleep(0.02)
        if stopped and WORK_BEGINS.search(_text(read)):
            stopped = False
            os.killpg(process.pid, signal.SIGINT)
        late = time.monotonic() - began > seconds
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    reader.join()
    os.close(ours)
    return Outcome(
        code=TOO_LATE if late else code, text=_text(read), seconds=time.monotonic() - began
    )


def _read(ours: int, read: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # nobody holds the other end any more
        while piece := os.read(ours, 1 << 16):
            read.append(piece)


def _text(read: list[bytes]) -> str:
    return b"".join(read).decode("utf-8", "replace")


def faults(text: str, *, of_words: bool = True) -> list[str]:
    """What nobody should be shown: a traceback, and words that end in the next line."""
    found = ["a traceback"] if "Traceback (most recent call last)" in text else []
    for line in () if not of_words else re.split(r"[\r\n]+", ESCAPE.sub("", text)):
        if broken := broken_word(line.rstrip()):
            found.append(f"broken at column {COLUMNS}: {broken}")
    return found


def broken_word(line: str) -> str:
    """The first word that a terminal breaks; empty where there is none. One that has a line for
    itself, or would fit into none, as a path may not, has to be."""
    for place in range(COLUMNS, len(line), COLUMNS):
        if line[place - 1].isspace() or line[place].isspace():
            continue
        begin = max(line.rfind(" ", 0, place) + 1, 0)
        end = line.find(" ", place)
        word = line[begin : end if end >= 0 else len(line)]
        if len(word) <= COLUMNS and line[:begin].strip():
            return word
    return ""

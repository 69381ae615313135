"""What a running job notes of itself, and how often it shows that it lives; knows nothing of where
the notes lie."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault

BEAT_SECONDS = 300.0
"""Seconds between a job's signs of life."""
LEASE_SECONDS = 3600.0
"""Seconds after its last sign of life in which a job counts as running whose lock tells nothing."""
LARGEST_NOTE = 1 << 20
"""Most bytes of a note; a job has some dozens of namespaces of 64 each."""


def note_of(namespaces: Sequence[str], out: Path) -> dict[str, Any]:
    """Return what this process notes of a job."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "system": system(),
        "out": str(out),
        "scopes": list(namespaces),
    }


def read_note(text: bytes) -> dict[str, Any]:
    """Return a note; for a text that is none, that of a job which needs nothing."""
    blank = {"pid": 0, "host": socket.gethostname(), "system": "", "out": "?", "scopes": []}
    try:
        note = {**blank, **json.loads(text)}
        fits = isinstance(note["scopes"], list) and all(type(s) is str for s in note["scopes"])
    except (ValueError, TypeError, RecursionError):
        return blank
    return note if fits else blank


@cache
def system() -> str:
    """Return the space in which process ids are unique, until the machine is started anew. Returns
    an empty string where that is not told."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


@contextlib.contextmanager
def beating(show: Callable[[], object]) -> Iterator[None]:
    """Show again and again that this process lives."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError, EnvironmentFault):
                show()

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

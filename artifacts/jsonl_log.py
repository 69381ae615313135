"""An append-only JSON-lines cache that several processes write to.

Each line ends with a checksum. The file is only a cache: a lost or damaged line counts as never
written. Lines are short enough to be appended in one write.
"""

import contextlib
import json
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from artifacts.regular_files import open_regular
from artifacts.stamps import stamp_of

log = logging.getLogger(__name__)

Opener = Callable[[Path, int, int], int]
"""Opens a file by path, flags and mode."""
LARGEST = 1 << 29
"""Bytes that are read, from the end: two million lines, in three seconds."""
LONGEST_LINE = 1 << 16
"""Largest size of a line in bytes. JSON writes each of the 4,096 bytes of a path as up to six."""
_lock = threading.Lock()
_warned: set[Path] = set()


def read_lines(path: Path) -> Iterator[list[Any]]:
    """Yield the intact lines; skip all others."""
    with contextlib.suppress(OSError), open_regular(path) as file:
        file.seek(max(0, stamp_of(file.fileno()).size - LARGEST))
        while line := file.readline(LONGEST_LINE):
            text, _, check = line.rpartition(b', "')
            if check != f'{_check(text)}"]\n'.encode():
                continue  # torn by a crash, flipped by a disk, or from a version without checksums
            with contextlib.suppress(ValueError, RecursionError):
                yield json.loads(text + b"]")


def append_line(path: Path, values: list[Any], opener: Opener = os.open) -> None:
    """Append these values. Raises OSError."""
    text = json.dumps(values)[:-1]
    # Start a new line, since a torn or damaged one may precede it.
    line = f'\n{text}, "{_check(text.encode())}"]\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    file = opener(path, flags, 0o666)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def warn_of_cache(folder: Path) -> None:
    """Warn, once for a folder in a process, that a cache or a claim in it cannot be written."""
    with _lock:
        is_new = folder not in _warned
        _warned.add(folder)
    if is_new:
        log.warning("%s: what saves work there cannot be written; its owner may allow it", folder)


def _check(text: bytes) -> str:
    """Return a checksum that detects every burst error of up to 32 bits."""
    return f"{zlib.crc32(text):08x}"

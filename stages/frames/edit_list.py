"""Shortens the edit list of an MP4 file, so that readers hide the frames behind its end.

A clip that is copied from a video with reordered frames holds packets that are shown after its end,
because frames before the end are decoded from them.

Source: ISO/IEC 14496-12, sections 8.2.2 (mvhd), 8.3.2 (tkhd) and 8.6.6 (elst).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CONTAINERS = (b"moov", b"trak", b"edts")
"""Boxes that hold the ones below."""
HEADER_BYTES = 8


def shorten(path: Path, seconds: float) -> None:
    """End the only track of a file, as FFmpeg writes it, after so many seconds; leave a file that
    is not longer, or has no edit list. Raises OSError."""
    with path.open("r+b") as file:
        boxes = dict(_boxes(file, 0, path.stat().st_size))
        if not {b"mvhd", b"tkhd", b"elst"} <= boxes.keys():
            return
        long = {name: _version(file, at) == 1 for name, at in boxes.items()}
        # Behind version and flags: creation and modification time, then the time scale.
        scale = _number(file, boxes[b"mvhd"] + (20 if long[b"mvhd"] else 12), wide=False)
        count = _number(file, boxes[b"elst"] + 4, wide=False)
        size = 20 if long[b"elst"] else 12
        # The last entry shows the frames; one before it may be an empty stretch.
        entry = boxes[b"elst"] + 8 + (count - 1) * size
        before = sum(
            _number(file, boxes[b"elst"] + 8 + at * size, wide=long[b"elst"])
            for at in range(count - 1)
        )
        duration = int(seconds * scale)
        if count < 1 or not 0 < duration < _number(file, entry, wide=long[b"elst"]):
            return
        _write(file, entry, duration, wide=long[b"elst"])
        after = 24 if long[b"mvhd"] else 16
        _write(file, boxes[b"mvhd"] + after, before + duration, wide=long[b"mvhd"])
        after = 28 if long[b"tkhd"] else 20
        _write(file, boxes[b"tkhd"] + after, before + duration, wide=long[b"tkhd"])


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Yield the name of each box, and the place of its content."""
    while begin + HEADER_BYTES <= end:
        file.seek(begin)
        size, name = struct.unpack(">I4s", file.read(HEADER_BYTES))
        content = begin + HEADER_BYTES
        if size == 1:
            size, content = struct.unpack(">Q", file.read(8))[0], content + 8
        elif size == 0:
            size = end - begin
        if size < content - begin:
            return
        yield name, content
        if name in CONTAINERS:
            yield from _boxes(file, content, begin + size)
        begin += size


def _version(file: BinaryIO, at: int) -> int:
    file.seek(at)
    return file.read(1)[0]


def _number(file: BinaryIO, at: int, *, wide: bool) -> int:
    file.seek(at)
    return int.from_bytes(file.read(8 if wide else 4), "big")


def _write(file: BinaryIO, at: int, value: int, *, wide: bool) -> None:
    file.seek(at)
    file.write(value.to_bytes(8 if wide else 4, "big"))

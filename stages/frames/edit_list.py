"""Walks the boxes of an MP4 file, and shortens its edit list: readers hide the frames behind it.

A clip that is copied from a video with reordered frames holds packets that are shown after its end,
because frames before the end are decoded from them.

Source: ISO/IEC 14496-12, sections 8.2.2 (mvhd), 8.3.2 (tkhd) and 8.6.6 (elst).
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

CONTAINERS = {b"moov": 0, b"trak": 0, b"edts": 0}
"""Boxes that hold the ones below."""
HEADER_BYTES = 8


def shorten(path: Path, seconds: float) -> None:
    """End the only track of a file, as FFmpeg writes it, after so many seconds; leave a file that
    is not longer, or has no edit list. Raises OSError."""
    with path.open("r+b") as file:
        place = dict(boxes(file, path.stat().st_size, CONTAINERS))
        if not {b"mvhd", b"tkhd", b"elst"} <= place.keys():
            return
        long = {name: _version(file, at) == 1 for name, at in place.items()}
        # Behind version and flags: creation and modification time, then the time scale.
        scale = _number(file, place[b"mvhd"] + (20 if long[b"mvhd"] else 12), wide=False)
        count = _number(file, place[b"elst"] + 4, wide=False)
        size = 20 if long[b"elst"] else 12
        # The last entry shows the frames; one before it may be an empty stretch.
        entry = place[b"elst"] + 8 + (count - 1) * size
        before = sum(
            _number(file, place[b"elst"] + 8 + at * size, wide=long[b"elst"])
            for at in range(count - 1)
        )
        duration = int(seconds * scale)
        if count < 1 or not 0 < duration < _number(file, entry, wide=long[b"elst"]):
            return
        _write(file, entry, duration, wide=long[b"elst"])
        after = 24 if long[b"mvhd"] else 16
        _write(file, place[b"mvhd"] + after, before + duration, wide=long[b"mvhd"])
        after = 28 if long[b"tkhd"] else 20
        _write(file, place[b"tkhd"] + after, before + duration, wide=long[b"tkhd"])


def boxes(file: BinaryIO, end: int, containers: Mapping[bytes, int]) -> Iterator[tuple[bytes, int]]:
    """Yield the name of each box up to a place in the file, and the place of its content.
    `containers`: name of a box that holds others → bytes before the first of them."""
    left = [(0, end)]  # not a recursion: a damaged file may hold a thousand in each other
    while left:
        begin, end = left.pop()
        file.seek(begin)
        head = file.read(2 * HEADER_BYTES)
        if begin + HEADER_BYTES > end or len(head) < HEADER_BYTES:
            continue
        size, name = struct.unpack_from(">I4s", head)
        content = begin + HEADER_BYTES
        if size == 1 and len(head) == 2 * HEADER_BYTES:
            (size,), content = struct.unpack_from(">Q", head, HEADER_BYTES), content + 8
        size = size or end - begin
        if size < content - begin:
            continue
        yield name, content
        left.append((begin + size, end))
        if name in containers:
            left.append((content + containers[name], min(end, begin + size)))


def _version(file: BinaryIO, at: int) -> int:
    file.seek(at)
    return file.read(1)[0]


def _number(file: BinaryIO, at: int, *, wide: bool) -> int:
    file.seek(at)
    return int.from_bytes(file.read(8 if wide else 4), "big")


def _write(file: BinaryIO, at: int, value: int, *, wide: bool) -> None:
    file.seek(at)
    file.write(value.to_bytes(8 if wide else 4, "big"))

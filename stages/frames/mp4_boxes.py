"""Changes the edit lists of an MP4 file, and recognizes Dolby Vision that other decoders cannot
show.

An edit list is shortened so that readers hide the frames behind it. A clip that is copied from a
video with reordered frames holds packets that are shown after its end, because frames before the
end are decoded from them. The edit list of the pictures is removed where FFmpeg writes one for each
track, and only the sound needs it. Source: ISO/IEC 14496-12, sections 8.2.2 (mvhd), 8.3.2 (tkhd)
and 8.6.6 (elst).

PyAV shows no side data of a stream. So the configuration record of Dolby Vision is read from the
file: MP4 and MOV have it in a box of the sample entry, Matroska in a BlockAdditionMapping. Source:
Dolby Vision Streams Within the ISO Base Media File Format, 3.2, and in Matroska (codec
specifications).
"""

import os
import re
import struct
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from artifacts.regular_files import open_regular

EDIT_CONTAINERS = {b"moov": 0, b"trak": 0, b"edts": 0}
"""Boxes that hold the ones below."""
HEADER_BYTES = 8


def shorten(path: Path, seconds: float) -> None:
    """End the first track of a file, as FFmpeg writes it, after so many seconds; leave a file that
    is not longer, or has no edit list. Raises OSError."""
    with path.open("r+b") as file:
        place: dict[bytes, int] = {}
        for name, at in boxes(file, path.stat().st_size, EDIT_CONTAINERS):
            place.setdefault(name, at)
        if not {b"mvhd", b"tkhd", b"elst"} <= place.keys():
            return
        long = {name: _read(file, at, 1) == b"\1" for name, at in place.items()}
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


def drop_edit_list(path: Path) -> None:
    """Free the place of the edit list of the first track, as FFmpeg writes it. Raises OSError."""
    with path.open("r+b") as file:
        walk = boxes(file, path.stat().st_size, EDIT_CONTAINERS)
        place = next(at for name, at in walk if name == b"edts") - HEADER_BYTES
        size = _number(file, place, wide=False)
        file.seek(place + 4)
        file.write(b"free" + bytes(size - HEADER_BYTES))


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


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _number(file: BinaryIO, at: int, *, wide: bool) -> int:
    return int.from_bytes(_read(file, at, 8 if wide else 4), "big")


def _write(file: BinaryIO, at: int, value: int, *, wide: bool) -> None:
    file.seek(at)
    file.write(value.to_bytes(8 if wide else 4, "big"))


SAMPLE_ENTRIES = (
    *(b"dvh1", b"dvhe", b"hvc1", b"hev1", b"dva1", b"dvav", b"avc1", b"avc3", b"av01", b"dav1"),
)
DOLBY_CONTAINERS = {
    **dict.fromkeys((b"moov", b"trak", b"mdia", b"minf", b"stbl"), 0),
    b"stsd": 8,
    **dict.fromkeys(SAMPLE_ENTRIES, 78),
}
"""Boxes that lead to a configuration record → bytes before the first box in them."""
RECORD_BYTES = 5
"""Bytes of a record that are read."""
RECORDS = (b"dvcC", b"dvvC", b"dvwC")
MATROSKA_BYTES = 1 << 20
"""Bytes of a Matroska file in which its tracks are described."""
MATROSKA = re.compile(rb"\x1a\x45\xdf\xa3")
MAPPING = re.compile(rb"\x41\xe7\x84dv[cvw]C.{0,16}?\x41\xed[\x85-\x98](.{5})", re.DOTALL)
"""BlockAddIDType and BlockAddIDExtraData of a mapping, with the first bytes of the record."""
MOST_BOXES = 10_000


def has_no_base_layer(path: Path) -> bool:
    """Return whether plain decoders show wrong colours, green and purple. Raises OSError."""
    with open_regular(path) as file:
        head = file.read(MATROSKA_BYTES)
        if MATROSKA.match(head):
            records = [each[1] for each in MAPPING.finditer(head)]
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide"):
            walk = islice(boxes(file, file.seek(0, os.SEEK_END), DOLBY_CONTAINERS), MOST_BOXES)
            records = [_read(file, at, RECORD_BYTES) for name, at in walk if name in RECORDS]
        else:
            records = []
    return any(map(_shows_nothing_plain, records))


def _shows_nothing_plain(record: bytes) -> bool:
    if len(record) < RECORD_BYTES:
        return False
    profile, compatible = record[2] >> 1, record[4] >> 4
    return profile == 5 or (profile == 10 and not compatible)

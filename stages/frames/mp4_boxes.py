"""Removes an edit list of an MP4 file, and recognizes Dolby Vision that other decoders cannot show.

The edit list of a clip's pictures is removed where FFmpeg writes one for each track, and only the
sound needs it. Source: ISO/IEC 14496-12, sections 8.6.5 (edts) and 8.6.6 (elst).

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

from artifacts.disk.regular_files import open_regular

EDIT_CONTAINERS = {b"moov": 0, b"trak": 0}
"""Boxes that hold the ones below."""
HEADER_BYTES = 8


def drop_edit_list(path: Path) -> None:
    """Free the place of the edit list of the first track, as FFmpeg writes it. Raises OSError."""
    with path.open("r+b") as file:
        walk = boxes(file, path.stat().st_size, EDIT_CONTAINERS)
        place = next(at for name, at in walk if name == b"edts") - HEADER_BYTES
        size = int.from_bytes(_read(file, place, 4), "big")
        file.seek(place + 4)
        file.write(b"free" + bytes(size - HEADER_BYTES))


def boxes(file: BinaryIO, end: int, containers: Mapping[bytes, int]) -> Iterator[tuple[bytes, int]]:
    """Yield the name of each box up to a place in the file, and the place of its content.
    `containers`: name of a box that holds others → bytes before the first of them."""
    unread = [(0, end)]  # not a recursion: a damaged file may hold a thousand in each other
    while unread:
        begin, end = unread.pop()
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
        unread.append((begin + size, end))
        if name in containers:
            unread.append((content + containers[name], min(end, begin + size)))


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


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
            records = [match[1] for match in MAPPING.finditer(head)]
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

"""Reads whether a video is Dolby Vision without a base layer that other decoders can show.

PyAV shows no side data of a stream. So the configuration record is read from the file: MP4 and MOV
have it in a box of the sample entry, Matroska in a BlockAdditionMapping. Source: Dolby Vision
Streams Within the ISO Base Media File Format, 3.2, and in Matroska (codec specifications).
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from artifacts.regular_files import open_regular

CONTAINERS = {b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0, b"stsd": 8}
"""Boxes on the way to a sample entry → bytes before the first box in them."""
SAMPLE_ENTRIES = frozenset(
    (b"dvh1", b"dvhe", b"hvc1", b"hev1", b"dva1", b"dvav", b"avc1", b"avc3", b"av01", b"dav1")
)
SAMPLE_ENTRY_BYTES = 78
"""Bytes of a visual sample entry before the first box in it."""
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
            end = file.seek(0, 2)
            records = [*_records(file, 0, end, [MOST_BOXES])]
        else:
            records = []
    return any(map(_shows_nothing_plain, records))


def _shows_nothing_plain(record: bytes) -> bool:
    profile, compatible = record[2] >> 1, record[4] >> 4
    return profile == 5 or (profile == 10 and not compatible)


def _records(file: BinaryIO, begin: int, end: int, left: list[int]) -> Iterator[bytes]:
    """Yield the first five bytes of each configuration record between two places."""
    while begin + 8 <= end and left[0] > 0:
        left[0] -= 1
        file.seek(begin)
        if len(head := file.read(16)) < 8:
            return
        size, name = struct.unpack(">I4s", head[:8])
        content = begin + 8
        if size == 1 and len(head) == 16:
            (size,), content = struct.unpack(">Q", head[8:]), content + 8
        size = size or end - begin
        if size < content - begin:
            return
        skipped = SAMPLE_ENTRY_BYTES if name in SAMPLE_ENTRIES else CONTAINERS.get(name)
        if name in RECORDS and size - (content - begin) >= 5:
            file.seek(content)
            yield file.read(5)
        elif skipped is not None:
            yield from _records(file, content + skipped, min(end, begin + size), left)
        begin += size

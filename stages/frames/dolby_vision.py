"""Reads whether a video is Dolby Vision without a base layer that other decoders can show.

PyAV shows no side data of a stream. So the configuration record is read from the file: MP4 and MOV
have it in a box of the sample entry, Matroska in a BlockAdditionMapping. Source: Dolby Vision
Streams Within the ISO Base Media File Format, 3.2, and in Matroska (codec specifications).
"""

import os
import re
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from artifacts.regular_files import open_regular
from stages.frames.edit_list import boxes

SAMPLE_ENTRIES = (
    *(b"dvh1", b"dvhe", b"hvc1", b"hev1", b"dva1", b"dvav", b"avc1", b"avc3", b"av01", b"dav1"),
)
CONTAINERS = {
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
            walk = islice(boxes(file, file.seek(0, os.SEEK_END), CONTAINERS), MOST_BOXES)
            records = [_record(file, at) for name, at in walk if name in RECORDS]
        else:
            records = []
    return any(map(_shows_nothing_plain, records))


def _shows_nothing_plain(record: bytes) -> bool:
    if len(record) < RECORD_BYTES:
        return False
    profile, compatible = record[2] >> 1, record[4] >> 4
    return profile == 5 or (profile == 10 and not compatible)


def _record(file: BinaryIO, at: int) -> bytes:
    """Return the first five bytes of a configuration record."""
    file.seek(at)
    return file.read(RECORD_BYTES)

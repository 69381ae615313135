"""Dolby Vision that plain decoders show in wrong colours is refused by name; all else is read."""

import struct
from pathlib import Path

import av
import pytest

from artifacts.errors import MediaError
from stages.frames.media_opening import open_video
from stages.frames.mp4_boxes import has_no_base_layer
from tests.support.media import write_video

PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
HEVC = {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"}


def record(profile: int, compatible: int) -> bytes:
    """A configuration record of 24 bytes: level 6, with metadata and a base layer."""
    bits = profile << 9 | 6 << 3 | 0b101
    return bytes((1, 0)) + struct.pack(">H", bits) + bytes((compatible << 4,)) + bytes(19)


def into_mp4(path: Path, entry: bytes, name: bytes, made: bytes) -> None:
    """Put a box into the sample entry of a file whose index is at its end."""
    data, at = bytearray(path.read_bytes()), 0
    box = struct.pack(">I4s", 8 + len(made), name) + made
    for parent in (*PARENTS, entry):
        at = data.index(parent, at)
        (size,) = struct.unpack_from(">I", data, at - 4)
        struct.pack_into(">I", data, at - 4, size + len(box))
    data[at + 4 + 78 : at + 4 + 78] = box
    path.write_bytes(data)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    try:
        av.codec.Codec("libx265", "w")
    except ValueError:
        pytest.skip("this FFmpeg cannot write libx265")
    return write_video(tmp_path / "a.mp4", ticks=range(10), codec="libx265", options=HEVC)


@pytest.mark.parametrize(
    ("profile", "compatible", "is_refused"),
    [(5, 0, True), (10, 0, True), (10, 1, False), (8, 1, False), (8, 4, False), (7, 6, False)],
)
@pytest.mark.parametrize("name", [b"dvcC", b"dvvC"])
def test_profiles_without_a_base_layer_are_refused(
    film: Path, name: bytes, profile: int, compatible: int, is_refused: bool
) -> None:
    entry = next(each for each in (b"hev1", b"hvc1") if each in film.read_bytes())
    into_mp4(film, entry, name, record(profile, compatible))
    if is_refused:
        with pytest.raises(MediaError, match="Dolby Vision") as refused:
            open_video(film)
        assert refused.value.hint and str(film) in refused.value.message
    else:
        container, stream = open_video(film)
        with container:
            assert next(container.decode(stream)).width == 64


def test_a_mapping_of_matroska_counts_too(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_video(path, ticks=range(10))
    open_video(path)[0].close()
    data = path.read_bytes()
    at = data.index(b"\x16\x54\xae\x6b")
    mapping = b"\x41\xe7\x84dvcC\x41\xed\x98" + record(5, 0)
    path.write_bytes(data[:at] + b"\xec" + bytes((0x80 | len(mapping),)) + mapping + data[at:])
    with pytest.raises(MediaError, match="Dolby Vision"):
        open_video(path)


def test_boxes_within_each_other_are_walked_without_recursion(tmp_path: Path) -> None:
    data = b""
    for _ in range(3000):
        data = struct.pack(">I4s", 8 + len(data), b"moov") + data
    path = tmp_path / "a.mp4"
    path.write_bytes(struct.pack(">I4s", 8, b"ftyp") + data)
    assert not has_no_base_layer(path)


def test_boxes_of_any_size_end_the_search(film: Path) -> None:
    data = film.read_bytes()
    at = data.index(b"stsd")
    for size in (0, 1, 7, 8, 1 << 31, (1 << 32) - 1):
        film.write_bytes(data[: at - 4] + struct.pack(">I", size) + data[at:])
        try:
            open_video(film)[0].close()
        except MediaError as error:
            assert "Dolby" not in error.message

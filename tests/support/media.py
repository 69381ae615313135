"""Tiny media files for tests, written with PyAV, and what a plain decode says is in them."""

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:  # benchmarks use this module, too
    import pytest


def decoded_packets(patch: "pytest.MonkeyPatch") -> list[object]:
    """A list to which the frames stage adds each packet that it decodes from now on."""
    from stages.frames.reader import Decoder

    packets: list[object] = []
    decode = Decoder._decode

    def counting(decoder: Decoder, packet: Any) -> None:
        packets.append(packet)
        decode(decoder, packet)

    patch.setattr(Decoder, "_decode", counting)
    return packets


def picture(index: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """An RGB picture that differs for every index: a moving bar over a shade of its own."""
    image = np.full((height, width, 3), (index * 37) % 200, dtype=np.uint8)
    image[..., 1] = np.linspace(0, 255, width, dtype=np.uint8)
    at = (index * 5) % width
    image[:, at : at + 6] = (255, 255, 255 - index % 100)
    image[: height // 4, : width // 4] = (255, 0, 0)
    return image


def write_numbered(folder: Path, count: int) -> Path:
    """A folder with so many pictures, each its own: `0.png` and on."""
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.fromarray(picture(3 * index + 1)).save(folder / f"{index}.png")
    return folder


def write_video(
    path: Path,
    *,
    ticks: Sequence[int] = range(30),
    time_base: Fraction = Fraction(1, 30),
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    gop: int = 12,
    options: dict[str, str] | None = None,
    rotation: int = 0,
    shown: tuple[int, int, int, int] | None = None,
    pixel_aspect: Fraction | None = None,
    pixel_format: str = "yuv420p",
    container_options: dict[str, str] | None = None,
    audio: bool = False,
    draw: Callable[[int, int, int], NDArray[np.uint8]] = picture,
) -> Path:
    """A video with a frame at each of `ticks` of `time_base`; `size` is (height, width).

    `shown` (a, b, c, d) asks players to show the pixel (x, y) at (a x + c y, b x + d y).
    """
    if codec == "libx264" and options is None:
        options = {"bf": "3", "preset": "ultrafast", "crf": "30", "sc_threshold": "0"}
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=round(1 / time_base), options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else pixel_format
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = gop
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(rotation)
        if shown is not None:
            a, b, c, d = (each << 16 for each in shown)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        if audio:
            _add_silence(container)
        for index, pts in enumerate(ticks):
            frame = VideoFrame.from_ndarray(draw(index, *size), format="rgb24")
            frame.pts, frame.time_base = pts, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_png(path: Path, chunks: Mapping[bytes, bytes]) -> Path:
    """A PNG of these chunks, by their types, and of what ends it."""
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with path.open("ab") as file:
        for name, data in {**chunks, b"IEND": b""}.items():
            file.write(struct.pack(">I", len(data)) + name + data)
            file.write(struct.pack(">I", zlib.crc32(name + data)))
    return path


def write_videos(folder: Path, count: int, frames: int = 10) -> Path:
    """A folder with so many videos, each its own: `0.mp4` and on."""
    folder.mkdir()
    for number in range(count):
        # Another distance of keyframes makes other bytes: equal files would be one item.
        write_video(folder / f"{number}.mp4", ticks=range(frames), gop=5 + number)
    return folder


def write_audio(path: Path) -> Path:
    """A file with a second of silence and no picture."""
    with av.open(str(path), "w") as container:
        _add_silence(container)
    return path


def _add_silence(container: av.container.OutputContainer) -> None:
    stream = container.add_stream("aac", rate=16000)
    assert isinstance(stream, av.AudioStream)
    frame = av.AudioFrame.from_ndarray(
        np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono"
    )
    frame.sample_rate, frame.pts = 16000, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def repeat_video(source: Path, path: Path, times: int) -> Path:
    """`source` over and over, its packets copied with later times; nothing is encoded again."""
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        stream = read.streams.video[0]
        packets = [packet for packet in read.demux(stream) if packet.size]
        *_, before, last = sorted(packet.pts or 0 for packet in packets)
        length = last + (last - before)
        copy = write.add_stream_from_template(stream)
        for turn in range(times):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.stream, again.time_base = copy, packet.time_base
                again.pts = (packet.pts or 0) + turn * length
                again.dts = (packet.dts or 0) + turn * length
                again.duration, again.is_keyframe = packet.duration, packet.is_keyframe
                write.mux(again)
    return path


def spoil(source: Path, path: Path, *, which: Callable[[int], bool]) -> Path:
    """The same file with the packets that `which` names filled with rubbish of their own length."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        for at, packet in enumerate(container.demux(container.streams.video[0])):
            if packet.size and packet.pos is not None and which(at):
                data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    return path


def flip_bits(source: Path, path: Path, *, packets: range) -> Path:
    """The same file with a few bytes changed in the middle of some packets of its video."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        for at, packet in enumerate(container.demux(container.streams.video[0])):
            if packet.pos is not None and at in packets:
                middle = packet.pos + packet.size // 2
                for place in range(middle, min(middle + 24, packet.pos + packet.size)):
                    data[place] ^= 0x5A
    path.write_bytes(data)
    return path


def flip_time(
    source: Path, path: Path, *, packet: int, bit: int, kind: Literal["video", "audio"] = "video"
) -> Path:
    """The same MPEG transport stream with one bit of one packet's presentation time flipped."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        stream = container.streams.get({kind: 0})[0]
        found = [p.pos for p in container.demux(stream) if p.size]
    # ISO/IEC 13818-1: after 9 bytes of header, 33 bits with a marker after bits 30, 15 and 0.
    start = {"video": b"\0\0\1\xe0", "audio": b"\0\0\1\xc0"}[kind]
    at = data.index(start, found[packet] or 0) + 9
    place = bit + 1 + (bit >= 15) + (bit >= 30)
    data[at + 4 - place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return path


ACCURATE = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


@dataclass(frozen=True, slots=True)
class Decoded:
    """One frame as a plain decode of the whole file gives it."""

    seconds: float
    """From the first frame."""
    digest: str
    """Of its RGB bytes at full size."""


def plain_frames(path: Path) -> Iterator[VideoFrame]:
    """Every frame that can be decoded, in order, by one thread that skips nothing."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        stream.thread_type = "NONE"
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            yield from frames


def rgb(frame: VideoFrame) -> NDArray[np.uint8]:
    """A frame's pixels by FFmpeg's accurate conversion, turned as a player shows it."""
    pixels = frame.to_ndarray(format="rgb24", interpolation=ACCURATE)
    return np.rot90(pixels, frame.rotation // 90)


def decode_plainly(path: Path) -> list[Decoded]:
    """Every frame that can be decoded, in order, by one thread that skips nothing."""
    found = [
        (frame.pts * frame.time_base, digest_of_pixels(rgb(frame)))
        for frame in plain_frames(path)
        if frame.pts is not None and frame.time_base is not None
    ]
    start = found[0][0]
    return [Decoded(float(at - start), digest) for at, digest in found]


def digest_of_pixels(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()

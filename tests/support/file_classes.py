"""One file of each class that a camera, a phone, a screen recorder or a broken disk leaves behind,
made or damaged here."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from tests.support.media import picture, write_video

FRAMES, RATE = 90, 30
DATA = Path(__file__).parent.parent / "data"
UNEVEN = [0, 40, 47, 333, 334, 600, 900, 1201, 1480, 1999, 2500, 2980]
"""Milliseconds of the frames of a video of variable rate; the last stands for one."""
CUT_AT = 40
"""The first frame that an edit list shows; the nearest keyframe lies before it."""
SDR_WHITE_NITS = 203
"""How bright a diffuse white is in HDR. Source: ITU-R BT.2408."""
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
LUMA_BT2020 = np.array([0.2627, 0.6780, 0.0593])
SVT_QUIET = {"preset": "12", "svtav1-params": "lp=1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileClass:
    """What a class of file is called, and what must be seen in it."""

    suffix: str
    make: Callable[[Path], object]
    """Writes the file."""
    times: list[float] = field(default_factory=lambda: [n / RATE for n in range(FRAMES)])
    """Seconds of its frames since the first."""
    start: float = 0.0
    """Seconds of its first frame since time 0: sound may come before it."""
    shows: Callable[[int], int] = lambda position: position
    """Which `picture` the frame at a position is."""
    duration: float = FRAMES / RATE
    size: tuple[int, int] = (48, 64)
    """Height and width as a player shows them."""
    encoder: str = "libx264"
    """Not every build of FFmpeg has every one."""


def video(**options: Any) -> Callable[[Path], object]:
    return lambda path: write_video(path, ticks=range(FRAMES), **options)


def cut_by_edit_list(path: Path) -> None:
    """What a phone leaves when a film is trimmed: all packets, and a list that shows some."""
    data = bytearray(write_video(path, ticks=range(FRAMES)).read_bytes())
    at = data.index(b"elst") + 12
    length, first = struct.unpack_from(">Ii", data, at)
    tick = 15360 // RATE
    struct.pack_into(">Ii", data, at, length - 1000 * CUT_AT // RATE, first + CUT_AT * tick)
    path.write_bytes(data)


def with_a_second_stream(path: Path) -> None:
    """A small preview first, then the film, which the file names as the one to be shown."""
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in ((32, 24), (64, 48)):
            stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = Disposition.default if width == 64 else Disposition(0)
            streams.append(stream)
        for index in range(FRAMES):
            for stream in streams:
                pixels = picture(index, 48, 64) if stream.width == 64 else picture(0, 24, 32)
                frame = VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, RATE)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))


def high_dynamic_range(curve: str) -> Callable[[Path], None]:
    """The same pictures as a television of HDR wants them; `curve` is `pq` or `hlg`."""
    transfer = {"pq": 16, "hlg": 18}[curve]

    def write(path: Path) -> None:
        with av.open(str(path), "w") as container:
            options = {"x265-params": "log-level=none:pools=1", "preset": "ultrafast"}
            stream = container.add_stream("libx265", rate=RATE, options=options)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
            stream.codec_context.color_trc = transfer
            stream.codec_context.color_primaries = stream.codec_context.colorspace = 9
            for index in range(FRAMES):
                frame = _ten_bit(hdr_signal(picture(index), curve))
                frame.pts, frame.time_base = index, Fraction(1, RATE)
                frame.color_trc, frame.color_primaries, frame.colorspace = transfer, 9, 9
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))

    return write


def hdr_signal(pixels: NDArray[np.uint8], curve: str) -> NDArray[np.float64]:
    """ITU-R BT.2100, of light that a plain screen shows as `pixels`."""
    light: NDArray[np.float64] = (pixels / 255.0) ** 2.2 @ TO_BT2020.T * SDR_WHITE_NITS
    signal: NDArray[np.float64]
    if curve == "pq":
        bent = (light / 10000) ** (2610 / 16384)
        signal = ((3424 + 2413 * 32 * bent) / (4096 + 2392 * 32 * bent)) ** (2523 / 4096 * 128)
        return signal
    whole = light / 1000
    bright = np.maximum(whole @ LUMA_BT2020, 1e-6)[..., None]
    scene = whole * bright ** ((1 - 1.2) / 1.2)
    low = np.sqrt(3 * scene)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    signal = np.where(scene <= 1 / 12, low, high)
    return signal


def _ten_bit(signal: NDArray[np.float64]) -> VideoFrame:
    luma = signal @ LUMA_BT2020
    blue, red = (signal[..., 2] - luma) / 1.8814, (signal[..., 0] - luma) / 1.4746
    height, width = luma.shape
    frame = VideoFrame(width, height, "yuv420p10le")
    quarters = [c.reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for c in (blue, red)]
    planes = [64 + 876 * luma, *(512 + 896 * c for c in quarters)]
    for plane, values in zip(frame.planes, planes, strict=True):
        row = np.zeros((len(values), plane.line_size // 2), dtype="<u2")
        row[:, : values.shape[1]] = values.round()
        plane.update(row.tobytes())
    return frame


WHOLE: dict[str, FileClass] = {
    "VFR": FileClass(
        suffix=".mkv",
        make=lambda path: write_video(path, ticks=UNEVEN, time_base=Fraction(1, 1000)),
        times=[ms / 1000 for ms in UNEVEN],
        duration=2.981,
    ),
    "10-bit": FileClass(suffix=".mp4", make=video(pixel_format="yuv420p10le")),
    "HDR PQ": FileClass(suffix=".mp4", make=high_dynamic_range("pq"), encoder="libx265"),
    "HDR HLG": FileClass(suffix=".mp4", make=high_dynamic_range("hlg"), encoder="libx265"),
    "rotated": FileClass(suffix=".mp4", make=video(rotation=90), size=(64, 48)),
    "odd size": FileClass(
        suffix=".webm",
        make=video(size=(47, 63), codec="libvpx-vp9", options={"cpu-used": "8"}),
        size=(47, 63),
        encoder="libvpx-vp9",
    ),
    "edit list": FileClass(
        suffix=".mp4",
        make=cut_by_edit_list,
        times=[n / RATE for n in range(FRAMES - CUT_AT)],
        shows=lambda position: position + CUT_AT,
        duration=(FRAMES - CUT_AT) / RATE,
    ),
    "TS": FileClass(suffix=".ts", make=video()),
    "late start TS": FileClass(
        suffix=".ts", make=lambda path: write_video(path, ticks=range(3000, 3000 + FRAMES))
    ),
    "late start mp4": FileClass(
        suffix=".mp4",
        make=lambda path: write_video(path, ticks=range(300, 300 + FRAMES), audio=True),
        start=10.0,
    ),
    "fragmented mp4": FileClass(
        suffix=".mp4", make=video(container_options={"movflags": "frag_keyframe+empty_moov"})
    ),
    "no duration": FileClass(suffix=".mkv", make=video(container_options={"live": "1"})),
    "several streams": FileClass(suffix=".mp4", make=with_a_second_stream),
    "single frame": FileClass(
        suffix=".mp4",
        make=lambda path: write_video(path, ticks=[0]),
        times=[0.0],
        duration=1 / RATE,
    ),
    "MJPEG": FileClass(suffix=".avi", make=video(codec="mjpeg", options={"q": "2"})),
    "VP9": FileClass(
        suffix=".webm",
        make=video(codec="libvpx-vp9", options={"cpu-used": "8"}),
        encoder="libvpx-vp9",
    ),
    "AV1": FileClass(
        suffix=".mp4", make=video(codec="libsvtav1", options=SVT_QUIET), encoder="libsvtav1"
    ),
    "Theora": FileClass(
        # No wheel of PyAV can write it: `picture(0)` to `picture(5)`, two a second, by FFmpeg.
        suffix=".ogv",
        make=lambda path: path.write_bytes((DATA / "theora.ogv").read_bytes()),
        times=[n / 2 for n in range(6)],
        duration=3.0,
    ),
}
"""What must be captioned whole."""

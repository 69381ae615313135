"""Videos whose frames carry their own number, in many codecs, containers, rates and shapes.

A number is twelve bars at the top, each white for a one. Below it a scene of a colour of its own
changes every 90 frames, so that shots can be told apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.media import write_video

HEIGHT, WIDTH = 128, 256
BITS, BAR = 12, 20
"""Bars of a number, and the width of one in pixels."""
TOP, LEFT = 24, 8
"""Rows that the bars take, and the columns before the first."""
SCENE = 90
"""Frames of a scene."""
FAST = {"preset": "superfast", "crf": "20"}
CLOSED = {**FAST, "bf": "3", "sc_threshold": "0"}
OPEN = {**FAST, "bf": "3", "x264-params": "open-gop=1:scenecut=0"}
X265 = {"preset": "ultrafast", "crf": "20"}
FIELDS = {**FAST, "flags": "+ilme+ildct", "x264-params": "tff=1"}
FILM, TELEVISION = Fraction(1001, 24000), Fraction(1001, 30000)
PAL, WHOLE, SLOW = Fraction(1, 25), Fraction(1, 30), Fraction(1, 10)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One video."""

    name: str
    time_base: Fraction
    """Seconds per tick."""
    ticks: Sequence[int]
    """When each frame begins; a frame's place is its number."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of `write_video`."""

    @property
    def seconds(self) -> list[float]:
        """Return when each frame begins, from the first on."""
        return [float(tick * self.time_base) for tick in self.ticks]


def _of(name: str, base: Fraction, count: int = 400, /, **options: Any) -> Source:
    return Source(name=name, time_base=base, ticks=range(count), options=options)


def _thinned() -> list[int]:
    """Ticks of a rate that varies: every third, then every one, then pairs."""
    return [at for at in range(420) if (at >= 180 or not at % 3) and (at < 300 or at % 5 < 2)]


SOURCES = (
    _of("h264_25.mp4", PAL, 500, gop=50, options=CLOSED, audio=True),
    _of("h264_2997_open.mp4", TELEVISION, 600, gop=60, options=OPEN, audio=True),
    _of("h264_23976.mp4", FILM, 480, gop=400, options=CLOSED),
    _of("h264_23976_open.mkv", FILM, 480, gop=48, options=OPEN),
    _of("h264_2997.mkv", TELEVISION, 450, gop=45, options=CLOSED),
    _of("h264_30_closed.mp4", WHOLE, 540, gop=60, options=CLOSED),
    _of("h264_one_keyframe.mp4", PAL, 1000, gop=5000, options=CLOSED),
    _of("h264.mkv", WHOLE, gop=40, audio=True),
    _of("h264.ts", PAL, gop=25, audio=True),
    _of("h264.flv", PAL, gop=50, options={**FAST, "bf": "2"}),
    _of("h264_fragments.mp4", PAL, gop=50, container_options={"movflags": "frag_keyframe"}),
    _of("h264.mov", PAL, gop=250, pixel_format="yuv444p", options=FAST),
    _of("hevc_open.mp4", PAL, codec="libx265", options={**X265, "x265-params": "keyint=60"}),
    _of("hevc_closed.mp4", PAL, codec="libx265",
        options={**X265, "x265-params": "keyint=50:min-keyint=50:open-gop=0:scenecut=0"}),
    _of("hevc_10_bit.mkv", PAL, codec="libx265", pixel_format="yuv420p10le",
        options={**X265, "x265-params": "keyint=60"}),
    _of("mpeg1.mpg", PAL, codec="mpeg1video", gop=15, options={"b": "2M"}),
    _of("mpeg2.mpg", PAL, codec="mpeg2video", options={"b": "2M", "bf": "2"}),
    _of("mpeg2.ts", PAL, codec="mpeg2video", options={"b": "2M", "bf": "2"}),
    _of("mpeg4.avi", PAL, codec="mpeg4", gop=50, options={"b": "1M"}),
    _of("mjpeg.mov", PAL, 300, codec="mjpeg"),
    _of("wmv2.wmv", PAL, codec="wmv2", gop=20, options={"b": "1M"}),
    _of("vp8.webm", PAL, codec="libvpx", gop=60, options={"b": "1M", "deadline": "realtime"}),
    _of("vp9.webm", PAL, codec="libvpx-vp9", gop=60,
        options={"b": "1M", "deadline": "realtime", "cpu-used": "8"}),
    _of("av1.mp4", PAL, 250, codec="libsvtav1", gop=60, options={"preset": "12", "crf": "30"}),
    _of("ffv1.mkv", PAL, 200, codec="ffv1"),
    _of("prores.mov", PAL, 200, codec="prores_ks", pixel_format="yuv422p10le"),
    _of("gif.gif", SLOW, 200, codec="gif", pixel_format="rgb8"),
    _of("full_range.mp4", PAL, gop=50, pixel_format="yuvj420p", options=CLOSED),
    _of("interlaced.mp4", PAL, gop=50, options=FIELDS),
    Source(name="variable.mp4", time_base=WHOLE, ticks=_thinned(), options={"gop": 50}),
    Source(name="variable.mkv", time_base=WHOLE, ticks=_thinned(), options={"gop": 50}),
    Source(name="slides.mp4", time_base=WHOLE, ticks=range(0, 1500, 250), options={"gop": 2}),
    Source(name="slides.webm", time_base=SLOW, ticks=range(0, 400, 70),
           options={"codec": "libvpx", "gop": 2}),
    *(_of(f"turned_{turn}.mp4", PAL, 200, gop=50, rotation=turn) for turn in (90, 180, 270)),
    _of("mirrored.mp4", PAL, 200, gop=50, shown=(-1, 0, 0, 1)),
)  # fmt: skip


@lru_cache(maxsize=1024)
def frame(number: int) -> NDArray[np.uint8]:
    """Return the picture of a number, in RGB."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    scene = number // SCENE
    shades = [60 + 40 * np.sin((x * (1 + scene % 3) + y + 4 * number) / 30 + c) for c in range(3)]
    image = np.stack(shades, -1)
    image[..., scene % 3] += 90
    image[:TOP] = 16
    for bit in range(BITS):
        if number >> bit & 1:
            image[:TOP, LEFT + bit * BAR : LEFT + (bit + 1) * BAR] = 240
    return image.clip(0, 255).astype(np.uint8)


def number_in(image: NDArray[Any]) -> int:
    """Return the number in a picture, of one channel or more."""
    rows = image[TOP // 4 : TOP - TOP // 4].astype(float)
    rows = rows.mean(-1) if rows.ndim == 3 else rows
    bars = (rows[:, LEFT + b * BAR + 4 : LEFT + (b + 1) * BAR - 4] for b in range(BITS))
    return sum(1 << bit for bit, bar in enumerate(bars) if bar.mean() > 128)


def _as_stored(number: int, _height: int, _width: int, *, turn: int, mirrored: bool) -> Any:
    image = np.rot90(frame(number), -(turn // 90))
    return np.ascontiguousarray(image[:, ::-1] if mirrored else image)


def write(folder: Path) -> dict[str, Source]:
    """Write all sources that the folder lacks. Return name → source."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        path, turn = folder / source.name, source.options.get("rotation", 0)
        size = (WIDTH, HEIGHT) if turn in (90, 270) else (HEIGHT, WIDTH)
        draw = partial(_as_stored, turn=turn, mirrored="shown" in source.options)
        if not path.exists():
            half = path.with_name(f".half-{path.name}")
            base, ticks = source.time_base, source.ticks
            write_video(half, ticks=ticks, time_base=base, size=size, draw=draw, **source.options)
            half.replace(path)
    return {source.name: source for source in SOURCES}

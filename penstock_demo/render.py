"""Draws clips of the demo's world as frames and writes them as H.264 files."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from penstock_demo.tracks import place
from penstock_demo.world import ClipSpec

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

PAINT: Final = {
    "red": (215, 35, 35),
    "orange": (245, 135, 25),
    "yellow": (240, 225, 50),
    "green": (45, 165, 65),
    "cyan": (50, 210, 215),
    "blue": (45, 70, 220),
    "purple": (135, 50, 185),
    "pink": (250, 145, 200),
}
OVERSAMPLING: Final = 6
"""Each sprite is drawn this many times larger and averaged down."""


@functools.lru_cache(maxsize=20_000)
def sprite(shape: str, radius_x: float, radius_y: float, x: float, y: float) -> Floats:
    """Return the coverage of one shape. Its centre is `x`, `y` pixels right of and below the middle
    pixel."""
    half = math.ceil(max(radius_x, radius_y) * 1.08) + 1
    side = 2 * half + 1
    image = Image.new("L", (side * OVERSAMPLING, side * OVERSAMPLING), 0)
    draw = ImageDraw.Draw(image)
    cx, cy = (half + x + 0.5) * OVERSAMPLING, (half + y + 0.5) * OVERSAMPLING
    rx, ry = radius_x * OVERSAMPLING, radius_y * OVERSAMPLING

    def box(wide: float, high: float, fill: int = 255) -> tuple[list[float], int]:
        return [cx - rx * wide, cy - ry * high, cx + rx * wide, cy + ry * high], fill

    if shape == "circle":
        draw.ellipse(*box(1, 1))
    elif shape == "ring":
        draw.ellipse(*box(1, 1))
        draw.ellipse(*box(0.55, 0.55, 0))
    elif shape == "square":
        draw.rectangle(*box(0.88, 0.88))
    elif shape == "triangle":
        draw.polygon([(cx, cy - ry), (cx + rx, cy + ry * 0.85), (cx - rx, cy + ry * 0.85)], 255)
    elif shape == "cross":
        draw.rectangle(*box(1, 0.34))
        draw.rectangle(*box(0.34, 1))
    else:
        reach = [1.08 if corner % 2 == 0 else 0.45 for corner in range(10)]
        turn = [corner * math.pi / 5 for corner in range(10)]
        draw.polygon(
            [
                (cx + rx * r * math.sin(a), cy - ry * r * math.cos(a))
                for r, a in zip(reach, turn, strict=True)
            ],
            255,
        )
    return coverage_of(image, side)


def coverage_of(image: Image.Image, side: int) -> Floats:
    """Return the coverage of a shape that was drawn OVERSAMPLING times larger."""
    small = image.resize((side, side), Image.Resampling.BOX)
    coverage: Floats = np.asarray(small, np.float32) / np.float32(255)
    return coverage


def placed(
    mask: Floats, left: int, top: int, height: int, width: int
) -> tuple[Floats, tuple[slice, slice]]:
    """Return the part of a sprite that lies in an image, and its rows and columns there. The
    sprite's middle pixel is at `left`, `top`."""
    half = mask.shape[0] // 2
    rows = slice(max(top - half, 0), min(top + half + 1, height))
    columns = slice(max(left - half, 0), min(left + half + 1, width))
    inside = mask[
        rows.start - top + half : rows.stop - top + half,
        columns.start - left + half : columns.stop - left + half,
    ]
    return inside, (rows, columns)


def ground(kind: str, rng: np.random.RandomState, height: int, width: int) -> Pixels:
    """Return a background of one of the kinds, (height, width, 3)."""
    tall, wide = math.sqrt(height / width), math.sqrt(width / height)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = y / height * tall, x / width * wide
    tint = 1 + rng.uniform(-0.08, 0.08, 3)
    if kind == "dark":
        grey = np.full((height, width), rng.uniform(8, 45))
    elif kind == "light":
        grey = np.full((height, width), rng.uniform(205, 245))
    elif kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        slope = np.cos(angle) * x + np.sin(angle) * y
        slope = (slope - slope.min()) / (slope.max() - slope.min())
        grey = 20 + slope * rng.uniform(170, 215)
    elif kind == "noisy":
        cells = rng.uniform(40, 210, (48, 48))
        grey = cells[(y * 32).astype(np.int64), (x * 32).astype(np.int64)]
    else:
        period, shift = rng.uniform(10, 16) / 64, rng.uniform(0, 1)
        ramp = (x, y, (x + y) * 0.7)[rng.randint(3)]
        low = rng.uniform(30, 70)
        grey = np.where((ramp / period + shift) % 1 < 0.5, low, low + rng.uniform(90, 120))
    return np.clip(grey[..., None] * tint, 0, 255).astype(np.uint8)


class Painter:
    """Draws the frames of one clip at one resolution."""

    def __init__(self, spec: ClipSpec, height: int, width: int) -> None:
        self.spec = spec
        self.scale = (width / (64 * math.sqrt(spec.aspect)), height / (64 / math.sqrt(spec.aspect)))
        rng = np.random.RandomState(spec.seed)
        self._ground = ground(spec.sentence.background, rng, height, width)
        self._colours = [
            np.clip(np.array(PAINT[thing.colour]) + rng.uniform(-14, 14, 3), 0, 255)
            for thing in spec.sentence.things
        ]

    def frame(self, time: float, cover: Floats | None = None) -> Pixels:
        """Return the frame at a fraction of the clip. The area that each thing covers is written
        into `cover`."""
        frame = self._ground.copy()
        for index, (thing, track) in enumerate(
            zip(self.spec.sentence.things, self.spec.tracks, strict=True)
        ):
            x, y, seen = place(track, time)
            if not seen:
                continue
            x, y = (stepped(at * by - 0.5, 0.25) for at, by in zip((x, y), self.scale, strict=True))
            left, top = math.floor(x), math.floor(y)
            radii = [stepped(track.radius * scale, 0.25) for scale in self.scale]
            mask = sprite(thing.shape, radii[0], radii[1], x - left, y - top)
            mask, place_in = placed(mask, left, top, frame.shape[0], frame.shape[1])
            under = frame[place_in].astype(np.float32)
            frame[place_in] = under + mask[..., None] * (self._colours[index] - under) + 0.5
            if cover is not None:
                cover[index][place_in] = mask
        return frame


def stepped(value: float, step: float) -> float:
    """Return the value rounded, so that few different sprites are drawn."""
    return round(value / step) * step


def render_frames(spec: ClipSpec, times: Sequence[float], height: int, width: int) -> Pixels:
    """Return frames (time, height, width, 3) at these fractions of the clip."""
    painter = Painter(spec, height, width)
    return np.stack([painter.frame(time) for time in times])


def write_clip(spec: ClipSpec, path: Path) -> None:
    """Write the clip as H.264 in an mp4 file, with its own size, frame rate and duration."""
    import av

    painter = Painter(spec, spec.height, spec.width)
    count = max(2, round(spec.duration_seconds * spec.frames_per_second))
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=spec.frames_per_second)
        stream.width, stream.height, stream.pix_fmt = spec.width, spec.height, "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast", "threads": "1"}
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(painter.frame(index / count), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

"""Videos whose cuts are known, written frame by frame."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH, RATE = 360, 640, 25
MARGIN = 1.5
"""A scene is so many times as large as what is seen of it, for the camera to move in."""
TRANSITION = 16
"""Frames of a fade or a dissolve."""
CALM = ("still", "pan", "zoom", "shake", "object")
WILD = ("whip", "flash", "dim", "lightning")
MOVES = CALM + WILD
"""What happens in a shot. A whip pan goes half a picture in 0.4 s; lightning is three flashes."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A video and the truth about it."""

    name: str
    path: Path
    cuts: tuple[float, ...]
    """Seconds from the first frame where shots begin, without the first."""
    tolerance: float
    """Seconds by which a cut found may be off."""


def texture(rng: np.random.Generator) -> Picture:
    """A scene: colours in clouds of several sizes, and some shapes with edges."""
    high, wide = round(HEIGHT * MARGIN), round(WIDTH * MARGIN)
    clouds = np.zeros((high, wide, 3), dtype=np.float32)
    for cells, weight in ((2, 1.0), (6, 0.6), (24, 0.3), (96, 0.15)):
        noise = rng.integers(0, 256, (cells, 2 * cells, 3), dtype=np.uint8)
        grown = Image.fromarray(noise).resize((wide, high), Image.Resampling.BICUBIC)
        clouds += weight * (np.asarray(grown, dtype=np.float32) - 128)
    lit = np.clip(clouds * rng.uniform(0.4, 1.1) + rng.uniform(70, 170), 0, 255)
    scene: Picture = lit.astype(np.uint8)
    for _ in range(int(rng.integers(0, 6))):
        top, left = int(rng.integers(0, high)), int(rng.integers(0, wide))
        tall, broad = rng.integers(20, HEIGHT // 2, 2)
        scene[top : top + tall, left : left + broad] = rng.integers(0, 256, 3)
    return scene


def enlarged(picture: Image.Image) -> Picture:
    """A photograph at the size of a scene."""
    size = (round(WIDTH * MARGIN), round(HEIGHT * MARGIN))
    grown = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    pixels: Picture = np.asarray(grown, dtype=np.uint8)
    return pixels


def shot(scene: Picture, move: str, frames: int, rng: np.random.Generator) -> Iterator[Picture]:
    """The pictures of one shot."""
    high, wide = scene.shape[0] - HEIGHT, scene.shape[1] - WIDTH
    top, left = int(rng.integers(0, high)), int(rng.integers(0, wide))
    way = rng.choice([-1, 1])
    lit = int(rng.integers(frames // 4, 3 * frames // 4))
    flashes = {"flash": {lit, lit + 1}, "lightning": {lit, lit + 1, lit + 4, lit + 8}}.get(move, ())
    colour = rng.integers(0, 256, 3)
    for at in range(frames):
        y, x, seen = top, left, (HEIGHT, WIDTH)
        if move == "pan":
            x = _back_and_forth(left + way * 3 * at, wide)
        elif move == "whip":
            x = _back_and_forth(left + way * 32 * min(max(at - lit, 0), 10), wide)
        elif move == "shake":
            y, x = (
                _back_and_forth(p + int(rng.integers(-9, 10)), m) for p, m in ((y, high), (x, wide))
            )
        elif move == "zoom":
            share = 1 - 0.4 * at / frames
            seen = (round(HEIGHT * share), round(WIDTH * share))
        picture = scene[y : y + seen[0], x : x + seen[1]]
        if seen != (HEIGHT, WIDTH):
            picture = np.asarray(Image.fromarray(picture).resize((WIDTH, HEIGHT)))
        if move == "object":
            place = way * (at * 8) % WIDTH
            picture = picture.copy()
            picture[HEIGHT // 4 :, place : place + WIDTH // 4] = colour
        elif move == "dim":
            picture = (picture * (1 - 0.6 * at / frames)).astype(np.uint8)
        elif at in flashes:
            picture = np.clip(picture.astype(np.int32) + 140, 0, 255).astype(np.uint8)
        yield picture


def _back_and_forth(place: int, limit: int) -> int:
    return limit - abs(place % (2 * limit) - limit)


def written(
    path: Path,
    pictures: Iterator[Picture],
    size: tuple[int, int] = (HEIGHT, WIDTH),
    rate: int = RATE,
    **options: str,
) -> None:
    """Encode as cameras and sites do; `options` are those of x264."""
    with av.open(str(path), "w") as container:
        given = {"preset": "veryfast", **options}
        stream: Any = container.add_stream("libx264", rate=rate, options=given)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def joined(
    name: str, folder: Path, shots: Sequence[Iterator[Picture]], *, between: str = "cut"
) -> Made:
    """The shots one after the other: `cut`, `dissolve` into the next, or `fade` through black."""
    starts: list[int] = []

    def pictures() -> Iterator[Picture]:
        count, tail = 0, list[Picture]()
        for number, one in enumerate(shots):
            body = list(one)
            if between == "cut" or not number:
                starts.append(count)
            else:
                starts.append(count + TRANSITION // 2)
                ramp = np.linspace(0, 1, TRANSITION)
                for share, old, new in zip(ramp, tail, body[:TRANSITION], strict=True):
                    yield _mixed(old, new, float(share), black=between == "fade")
                count, body = count + TRANSITION, body[TRANSITION:]
            if between != "cut" and number < len(shots) - 1:
                body, tail = body[:-TRANSITION], body[-TRANSITION:]
            yield from body
            count += len(body)

    path = folder / f"{name.replace(' ', '-')}.mp4"
    written(path, pictures())
    tolerance = (1.5 if between == "cut" else TRANSITION / 2 + 1.5) / RATE
    cuts = tuple(at / RATE for at in starts[1:])
    return Made(name=name, path=path, cuts=cuts, tolerance=tolerance)


def _mixed(old: Picture, new: Picture, share: float, *, black: bool) -> Picture:
    if black:
        seen = old * (1 - 2 * share) if share < 0.5 else new * (2 * share - 1)
    else:
        seen = old * (1 - share) + new * share
    return seen.astype(np.uint8)


def clip_pictures(path: Path, start: float, frames: int) -> Iterator[Picture]:
    """`frames` pictures of a clip from `start` seconds on, at the common size and rate."""
    count = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        first: float | None = None
        for frame in container.decode(stream):
            first = frame.time if first is None else first
            at = (frame.time or 0.0) - (first or 0.0)
            # One picture for each step of the common rate, the one on display then.
            while count < frames and start + (count - 0.5) / RATE <= at:
                picture: Any = frame.to_ndarray(format="rgb24", width=WIDTH, height=HEIGHT)
                yield picture
                count += 1
            if count >= frames:
                return

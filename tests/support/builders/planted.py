"""Makes pictures and clips, and states which are copies, blurred, black, frozen or letterboxed.

Originals are photos, frames of real clips where there are some, and drawn scenes. Everything
follows from the seed.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from artifacts.frame_fit import FrameFit
from stages.frames.image import read_image

Picture = Image.Image
BLURS = (0.004, 0.008, 0.016, 0.032)
"""Standard deviations of the four blurs, as shares of the longer side."""
CROP = 0.05
"""Share of each side that a crop leaves out."""
CLIPS = (
    "intel_person.mp4", "intel_bottle.mp4", "intel_car.mp4", "intel_asl_book.mkv",
    "tc_nasa.mp4", "mpy_fire2.mp4", "gr_world.mp4", "mei_flir.mp4", "mei_road.avi", "mei_sea.mp4",
    "awkward/geese.ts", "awkward/editlist_copycut.mp4",
)  # fmt: skip
"""Clips that can be read to their end. One more shows slides that stand still between dark bars."""
APART = 2.0
"""Seconds between two frames of a clip that are different pictures."""
DIFFERENT = 8.0
"""Mean difference of 16 x 16 grey points, of 255, from which two originals are different."""
SCENE_SIZE = (960, 540)
CLIP_SIZE, RATE, CLIP_SECONDS = (480, 270), 24, 5.0
STRETCH = (1.0, 3.5)
"""Seconds between which a planted clip is black or frozen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planted:
    """One file, and the truth about it."""

    name: str
    """Path in the folder."""
    group: str
    """Name of its original: files of one group are copies of each other."""
    kind: str
    """One of KINDS, `original`, `single`, `neighbour`, `blur`, `black`, `frozen`, `letterbox`."""
    photo: bool = False
    """Whether it is a photo or a real frame."""


@dataclass(kw_only=True, slots=True)
class Plan:
    """The number of files of each kind."""

    copied: int = 240
    """Originals with a copy of each kind."""
    blurred: int = 60
    """Originals with a copy of each blur."""
    letterboxed: int = 60
    black: int = 20
    single: int = 240
    clips_copied: int = 30
    clips_frozen: int = 30
    clips_black: int = 30
    clips_letterboxed: int = 30
    clips_single: int = 30


def small(picture: Picture) -> NDArray[np.float32]:
    grey = picture.convert("L").resize((16, 16), Image.Resampling.BOX)
    return np.asarray(grey, np.float32)


def photos(folder: Path) -> Iterator[Picture]:
    """Yield parts of the photos, none overlapping another."""
    for path in sorted((folder / "photos").iterdir()):
        _, chunk = read_image(path, FrameFit())
        whole = Image.fromarray(chunk.pixels[0])
        parts = max(1, min(whole.size) // 600)
        wide, high = whole.width // parts, whole.height // parts
        for at in range(parts * parts):
            left, top = at % parts * wide, at // parts * high
            yield whole.crop((left, top, left + wide, top + high))


def frames(path: Path, every: float) -> Iterator[Picture]:
    """Yield the frames of a clip that are this many seconds apart."""
    with av.open(str(path)) as container:
        following = 0.0
        for number, frame in enumerate(container.decode(video=0)):
            time = frame.time if frame.time is not None else number / 25
            if time >= following:
                following = time + every
                yield Image.fromarray(frame.to_ndarray(format="rgb24"))


def real_clips(folder: Path) -> list[Path]:
    """Return the clips that can be read to their end."""
    return [folder / name for name in CLIPS if (folder / name).exists()]


def texture(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A scene: colours in clouds of several sizes, and some shapes with edges."""
    wide, high = SCENE_SIZE
    clouds = np.zeros((high, wide, 3), dtype=np.float32)
    for cells, weight in ((2, 1.0), (6, 0.6), (24, 0.3), (96, 0.15)):
        noise = rng.integers(0, 256, (cells, 2 * cells, 3), dtype=np.uint8)
        grown = Image.fromarray(noise).resize((wide, high), Image.Resampling.BICUBIC)
        clouds += weight * (np.asarray(grown, dtype=np.float32) - 128)
    lit = np.clip(clouds * rng.uniform(0.4, 1.1) + rng.uniform(70, 170), 0, 255)
    scene: NDArray[np.uint8] = lit.astype(np.uint8)
    for _ in range(int(rng.integers(0, 6))):
        top, left = int(rng.integers(0, high)), int(rng.integers(0, wide))
        tall, broad = rng.integers(20, high // 3, 2)
        scene[top : top + tall, left : left + broad] = rng.integers(0, 256, 3)
    return scene


def drawn(rng: np.random.Generator) -> Iterator[Picture]:
    """Yield drawn scenes without end."""
    while True:
        scene = Image.fromarray(texture(rng))
        pen = ImageDraw.Draw(scene)
        for _ in range(int(rng.integers(6, 30))):
            x, y = (int(v) for v in rng.integers(0, scene.size))
            w, h = (int(v) for v in rng.integers(10, 220, 2))
            colour = tuple(int(v) for v in rng.integers(0, 256, 3))
            draw = pen.ellipse if rng.random() < 0.5 else pen.rectangle
            draw((x, y, x + w, y + h), fill=colour)
        yield scene


def originals(folder: Path | None, rng: np.random.Generator) -> Iterator[tuple[Picture, bool]]:
    """Yield pictures that differ from each other, real ones first, and whether they are real."""
    before: list[NDArray[np.float32]] = []
    real: Sequence[Iterator[Picture]] = []
    if folder is not None:
        real = [photos(folder), *(frames(path, APART) for path in real_clips(folder))]
    for source, is_real in [*((each, True) for each in real), (drawn(rng), False)]:
        for picture in source:
            seen = small(picture)
            flat = float(seen.std()) < DIFFERENT
            if flat or any(np.abs(seen - other).mean() < DIFFERENT for other in before):
                continue
            before.append(seen)
            picture.thumbnail((1600, 1600))
            yield picture.convert("RGB"), is_real


def reencoded(picture: Picture, rng: np.random.Generator) -> Picture:
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=int(rng.integers(25, 60)))
    return Image.open(packed).convert("RGB")


def scaled(picture: Picture, rng: np.random.Generator) -> Picture:
    by = rng.uniform(0.35, 0.8) if rng.random() < 0.7 else rng.uniform(1.2, 2.0)
    return picture.resize((round(picture.width * by), round(picture.height * by)))


def cropped(picture: Picture, rng: np.random.Generator) -> Picture:
    wide, high = round(picture.width * (1 - CROP)), round(picture.height * (1 - CROP))
    left = int(rng.integers(0, picture.width - wide + 1))
    top = int(rng.integers(0, picture.height - high + 1))
    return picture.crop((left, top, left + wide, top + high))


def subtitled(picture: Picture, rng: np.random.Generator) -> Picture:
    made = picture.copy()
    text = " ".join("".join(rng.choice(list("abcdefghilmnorstu"), 5)) for _ in range(5))
    font = ImageFont.load_default(max(10, picture.height // 16))
    pen, place = ImageDraw.Draw(made), (picture.width / 2, picture.height * 0.9)
    pen.text(place, text, "white", font, anchor="mm", stroke_width=2, stroke_fill="black")
    return made


def mirrored(picture: Picture, rng: np.random.Generator) -> Picture:
    return ImageOps.mirror(picture)


COPIES: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "reencoded": reencoded,
    "scaled": scaled,
    "cropped": cropped,
    "subtitled": subtitled,
    "mirrored": mirrored,
}
KINDS = tuple(COPIES)
"""The copies of an original."""


def letterboxed(picture: Picture, rng: np.random.Generator) -> Picture:
    bar = rng.uniform(0.06, 0.14)
    made = Image.new("RGB", picture.size)
    if rng.random() < 0.7:
        high = round(picture.height * (1 - 2 * bar))
        made.paste(picture.resize((picture.width, high)), (0, round(picture.height * bar)))
    else:
        wide = round(picture.width * (1 - 2 * bar))
        made.paste(picture.resize((wide, picture.height)), (round(picture.width * bar), 0))
    return made


def write_pictures(out: Path, plan: Plan, clips: Path | None, seed: int) -> list[Planted]:
    """Write the planted pictures, and return the truth about each."""
    out.mkdir(parents=True, exist_ok=True)
    rng, numbers, truth = np.random.default_rng(seed), count(), []

    def save(picture: Picture, group: str, kind: str, real: bool, quality: int = 88) -> None:
        name = f"{next(numbers):05d}.jpg"
        picture.save(out / name, quality=quality)
        truth.append(Planted(name=name, group=group, kind=kind, photo=real))

    expected = plan.copied + plan.blurred + plan.letterboxed + plan.single
    found = list(islice(originals(clips, rng), expected))
    order = rng.permutation(len(found))
    for number, at in enumerate(order):
        picture, real = found[at]
        group = f"g{number}"
        if number < plan.copied:
            save(picture, group, "original", real)
            for kind in KINDS:
                save(COPIES[kind](picture, rng), group, kind, real)
        elif number < plan.copied + plan.blurred:
            for share in BLURS:
                radius = share * max(picture.size)
                save(picture.filter(ImageFilter.GaussianBlur(radius)), group, "blur", real)
        elif number < plan.copied + plan.blurred + plan.letterboxed:
            save(letterboxed(picture, rng), group, "letterbox", real)
        else:
            save(picture, group, "single", real)
    for number in range(plan.black):
        noise = rng.integers(0, 8, (360, 640, 3), np.uint8)
        save(Image.fromarray(noise), f"b{number}", "black", False)
    return truth


Frames = list[NDArray[np.uint8]]


def moving(picture: Picture, rng: np.random.Generator) -> Frames:
    """Return the frames of a camera that moves over a picture, with something that crosses it."""
    wide, high = CLIP_SIZE
    scene = picture.resize((round(wide * 1.4), round(high * 1.4)))
    count_, frames_ = round(CLIP_SECONDS * RATE), []
    speed = rng.uniform(0.5, 1.0, 2) * rng.choice([-1, 1], 2)
    colour = tuple(int(v) for v in rng.integers(0, 256, 3))
    for at in range(count_):
        share = at / count_ - 0.5
        left, top = (
            round(v * 0.2 * (1 + share * s)) for v, s in zip(CLIP_SIZE, speed, strict=True)
        )
        frame = scene.crop((left, top, left + wide, top + high))
        x = round(wide * at / count_)
        ImageDraw.Draw(frame).ellipse((x - 30, high // 3, x + 30, high // 3 + 60), fill=colour)
        frames_.append(np.asarray(frame))
    return frames_


def real_moving(path: Path, every: float = CLIP_SECONDS) -> Iterator[Frames]:
    """Yield stretches of a real clip at the size and rate of the planted ones."""
    with av.open(str(path)) as container:
        found: Frames = []
        for number, frame in enumerate(container.decode(video=0)):
            if frame.time is not None and frame.time * RATE < number // 1000:
                continue
            pixels: Any = frame.to_ndarray(format="rgb24", width=CLIP_SIZE[0], height=CLIP_SIZE[1])
            found.append(pixels)
            if len(found) == round(every * RATE):
                yield found
                found = []


def _moves(frames_: Frames) -> bool:
    """Return whether something moves in each half second, and no frame is black by itself."""
    seen = np.array(frames_[:: RATE // 2], np.int16)
    moves = np.abs(np.diff(seen, axis=0)).mean(axis=(1, 2, 3)).min() > 1
    return bool(moves and (seen.max(axis=3) < 32).mean(axis=(1, 2)).max() < 0.9)


def write_clip(path: Path, frames_: Frames, *, quality: int = 23) -> None:
    """Encode frames as H.264, as cameras and sites do."""
    high, wide = (side // 2 * 2 for side in frames_[0].shape[:2])
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "crf": str(quality)}
        stream: Any = container.add_stream("libx264", rate=RATE, options=options)
        stream.height, stream.width = high, wide
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(frames_):
            picture = np.ascontiguousarray(pixels[:high, :wide])
            frame = VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _each(frames_: Frames, kind: str, seed: int) -> Frames:
    """Return the frames, each changed in the same way."""
    change = COPIES.get(kind, letterboxed)
    pictures = (Image.fromarray(pixels) for pixels in frames_)
    return [np.asarray(change(one, np.random.default_rng(seed))) for one in pictures]


def write_clips(out: Path, plan: Plan, clips: Path | None, seed: int) -> list[Planted]:
    """Write the planted clips, and return the truth about each."""
    out.mkdir(parents=True, exist_ok=True)
    rng, numbers, truth = np.random.default_rng(seed), count(), []
    real = [f for path in real_clips(clips) for f in islice(real_moving(path), 4)] if clips else []
    real = [each for each in real if _moves(each)]
    drawn_ = (moving(picture, rng) for picture in drawn(rng))

    def save(frames_: Frames, group: str, kind: str, real_: bool, quality: int = 23) -> None:
        name = f"{next(numbers):04d}.mp4"
        write_clip(out / name, frames_, quality=quality)
        truth.append(Planted(name=name, group=group, kind=kind, photo=real_))

    counts = {
        "original": plan.clips_copied,
        "frozen": plan.clips_frozen,
        "black": plan.clips_black,
        "letterbox": plan.clips_letterboxed,
        "single": plan.clips_single,
    }
    kinds = [kind for kind, expected in counts.items() for _ in range(expected)]
    for number, kind in enumerate(rng.permutation(kinds)):
        is_real = number < len(real)
        body, group = (real[number] if is_real else next(drawn_)), f"c{number}"
        first, last = (round(seconds * RATE) for seconds in STRETCH)
        if kind == "frozen":
            body = [*body[:first], *[body[first]] * (last - first), *body[last:]]
        elif kind == "black":
            body = [*body[:first], *[np.zeros_like(body[0])] * (last - first), *body[last:]]
        elif kind == "letterbox":
            body = _each(body, "letterbox", number)
        save(body, group, str(kind), is_real)
        if kind == "original":
            save(body, group, "reencoded", is_real, quality=34)
            for copy in ("scaled", "cropped", "subtitled", "mirrored"):
                save(_each(body, copy, number), group, copy, is_real)
    return truth

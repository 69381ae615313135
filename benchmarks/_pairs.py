"""Makes pairs of pictures and of videos, half of them copies, and states which.

Everything follows from the seed. Photos and frames of real clips come first where there are some,
and drawn scenes follow.
"""

import colorsys
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks._planted import (
    CLIP_SIZE,
    RATE,
    Frames,
    Picture,
    cropped,
    moving,
    originals,
    reencoded,
    scaled,
    subtitled,
    write_clip,
)

Draw = np.random.Generator
SECONDS = 3.0
WORDS = [
    "heart", "lung", "kidney", "liver", "brain", "surgery", "therapy", "report",
    "weather", "market", "budget", "river", "harbour", "garden", "engine", "bottle",
    "window", "paper", "camera", "signal", "matrix", "vector", "method", "result",
    "figure", "table", "season", "train", "bridge", "forest", "island", "doctor",
    "teacher", "student", "morning", "evening", "always", "never", "before", "after",
    "quick", "slow", "green", "small", "large", "north", "south", "because",
    "however", "between", "without", "together", "tomorrow", "yesterday", "meeting", "question",
    "answer", "please", "thanks", "maybe", "later", "today", "dinner", "ticket",
    "coffee", "number", "address", "photo",
]  # fmt: skip
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two files."""

    kind: str
    is_copy: bool
    names: tuple[str, str]
    """Their paths in the folder."""


def sentence(rng: Draw, words: int) -> str:
    return " ".join(str(word) for word in rng.choice(WORDS, words)).capitalize()


def font_of(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow needs FreeType"
    return font


def slide(look: Draw, texts: list[str]) -> Picture:
    """A slide: a title and some points below it, or a title alone."""
    dark = look.random() < 0.4
    ground, ink = ("#18202c", "#f0f0f0") if dark else ("#ffffff", "#202020")
    made = Image.new("RGB", (1280, 720), ground)
    pen = ImageDraw.Draw(made)
    accent = tuple(int(v) for v in look.integers(40, 200, 3))
    pen.rectangle((0, 0, 1280, int(look.integers(8, 40))), fill=accent)
    size = int(look.integers(54, 84))
    if len(texts) == 1:
        pen.text((640, 360), texts[0], ink, font_of(size), anchor="mm")
        return made
    pen.text((80, 110), texts[0], ink, font_of(size), anchor="lm")
    small = int(look.integers(26, 40))
    for number, text in enumerate(texts[1:]):
        pen.text((110, 220 + number * small * 2), f"- {text}", ink, font_of(small), anchor="lm")
    return made


def chat(look: Draw, texts: list[str]) -> Picture:
    """A screen of a telephone with messages on both sides."""
    made = Image.new("RGB", (720, 1280), "#ece5dd")
    pen = ImageDraw.Draw(made)
    pen.rectangle((0, 0, 720, 100), fill="#075e54")
    pen.text((90, 50), texts[0], "white", font_of(40), anchor="lm")
    top, font = 140, font_of(34)
    for text in texts[1:]:
        own, wide = look.random() < 0.5, int(look.integers(420, 560))
        left = 720 - wide - 30 if own else 30
        box = (left, top, left + wide, top + 74)
        pen.rounded_rectangle(box, 18, fill="#dcf8c6" if own else "white")
        pen.text((left + 20, top + 37), text, "#111111", font, anchor="lm")
        top += 104
    return made


def document(look: Draw, texts: list[str]) -> Picture:
    """A page of text. Its lines are 1/40 of its height."""
    made = Image.new("RGB", (900, 1200), "#fdfdfb")
    pen = ImageDraw.Draw(made)
    pen.text((80, 100), texts[0], "#101010", font_of(52), anchor="lm")
    for number, text in enumerate(texts[1:]):
        pen.text((80, 190 + 44 * number), text, "#202020", font_of(30), anchor="lm")
    return made


PLAIN = {"slide": (slide, 5), "title slide": (slide, 1), "chat": (chat, 10), "page": (document, 21)}
"""Kind of plain picture → how it is drawn, and the number of its texts."""


def plain_texts(rng: Draw, kind: str) -> list[str]:
    number = PLAIN[kind][1]
    if kind == "page":
        return [
            sentence(rng, 2),
            *(sentence(rng, int(rng.integers(4, 7))) for _ in range(number - 1)),
        ]
    return [sentence(rng, 2), *(sentence(rng, int(rng.integers(2, 5))) for _ in range(number - 1))]


def plain(rng: Draw, kind: str) -> Picture:
    return PLAIN[kind][0](rng, plain_texts(rng, kind))


def other_word(rng: Draw, word: str) -> str:
    """Return another word of about its length, with a capital where it has one."""
    other = next(
        str(each)
        for each in rng.permutation(WORDS)
        if each != word.lower() and abs(len(each) - len(word)) < 2
    )
    return other.capitalize() if word[0].isupper() else other


def other_words(rng: Draw, kind: str, change: str) -> tuple[Picture, Picture]:
    """Two plain pictures of one look and of equally long words: all texts differ, the first word
    alone, or one line."""
    seed, texts = int(rng.integers(1 << 30)), plain_texts(rng, kind)
    others = [" ".join(other_word(rng, word) for word in text.split()) for text in texts]
    if change == "a word":
        first, rest = texts[0].split(" ", 1)
        others = [f"{other_word(rng, first)} {rest}", *texts[1:]]
    elif change == "a line":
        at = int(rng.integers(1, len(texts)))
        others = [*texts[:at], others[at], *texts[at + 1 :]]
    made = [PLAIN[kind][0](np.random.default_rng(seed), each) for each in (texts, others)]
    return made[0], made[1]


def alike_colours(rng: Draw) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return two colours of equal brightness that nobody takes for one."""
    while True:
        hue, apart = rng.random(), rng.uniform(0.25, 0.5)
        one, other = (
            np.array(colorsys.hsv_to_rgb((hue + add) % 1, rng.uniform(0.6, 1), 1))
            for add in (0, apart)
        )
        level = rng.uniform(60, 130)
        found = [each * level / (each @ LUMA) for each in (one, other)]
        if max(each.max() for each in found) <= 255:
            return tuple(map(round, found[0])), tuple(map(round, found[1]))


def shoe(pen: ImageDraw.ImageDraw, at: tuple[float, float], size: float, fill: object) -> None:
    """Draw something with a sole, laces and shades of one colour."""
    x, y = at
    body = [(0, 0.35), (0.3, 0.3), (0.4, 0), (0.75, 0), (0.8, 0.55), (0, 0.6)]
    pen.polygon([(x + size * a, y + size * b) for a, b in body], fill=fill)  # type: ignore[arg-type]
    pen.rectangle((x, y + 0.6 * size, x + 0.8 * size, y + 0.66 * size), fill="#e8e8e8")
    for number in range(4):
        left, top = x + size * (0.3 + 0.04 * number), y + size * (0.28 - 0.07 * number)
        pen.line((left, top, left + 0.12 * size, top + 0.02 * size), fill="white", width=4)


def coloured(rng: Draw, ground: Picture) -> tuple[Picture, Picture]:
    """Two pictures that differ in the colour of one thing alone."""
    made = [ground.copy(), ground.copy()]
    size = ground.height * rng.uniform(0.25, 0.6)
    at = rng.uniform(0, ground.width - 0.8 * size), rng.uniform(0, ground.height - 0.66 * size)
    for picture, colour in zip(made, alike_colours(rng), strict=True):
        shoe(ImageDraw.Draw(picture), at, size, colour)
    return made[0], made[1]


def fields(rng: Draw) -> tuple[Picture, Picture]:
    """Two fields of colour below one sky of grey."""
    shade = np.asarray(Image.effect_noise((40, 24), 60).resize((1280, 720)), np.float32)[..., None]
    made = []
    for colour in alike_colours(rng):
        pixels = np.clip(np.array(colour) + (shade - 128) * 0.3, 0, 255).astype(np.uint8)
        pixels[:240] = np.linspace(120, 220, 240, dtype=np.uint8)[:, None, None]
        made.append(Image.fromarray(pixels))
    return made[0], made[1]


def moved(rng: Draw, ground: Picture) -> tuple[Picture, Picture]:
    """Two pictures of a camera that stands still: something was moved, by more than its size."""
    size = ground.height * rng.uniform(0.08, 0.25)
    bright = float(np.asarray(ground.convert("L"), np.float32).mean())
    level = int((bright + rng.uniform(50, 140)) % 256)
    fill = tuple(int(np.clip(level + v, 0, 255)) for v in rng.integers(-30, 30, 3))
    places: list[tuple[float, float]] = []
    while len(places) < 2:
        place = (rng.uniform(0, ground.width - size), rng.uniform(0, ground.height - size))
        if all(np.hypot(place[0] - x, place[1] - y) > size for x, y in places):
            places.append(place)
    made = []
    for place in places:
        picture = ground.copy()
        shoe(ImageDraw.Draw(picture), place, size, fill)
        noise = rng.normal(0, 2, (picture.height, picture.width, 3))
        made.append(Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)))
    return made[0], made[1]


def watermarked(picture: Picture, rng: Draw) -> Picture:
    """Return a picture with a half transparent name in a corner."""
    made = picture.convert("RGBA")
    sheet = Image.new("RGBA", made.size)
    high = int(rng.choice([0.1, 0.9]) * made.height)
    colour = (*(int(v) for v in rng.integers(150, 256, 3)), 150)
    font = font_of(max(12, made.height // 14))
    side = int(rng.choice([0.2, 0.8]) * made.width)
    ImageDraw.Draw(sheet).text((side, high), sentence(rng, 1), colour, font, anchor="mm")
    return Image.alpha_composite(made, sheet).convert("RGB")


def packed(picture: Picture, rng: Draw) -> Picture:
    """Return a picture as a site sends it: scaled down and compressed."""
    buffer, small = io.BytesIO(), scaled(picture, rng)
    small.save(buffer, "JPEG", quality=int(rng.integers(50, 85)))
    return Image.open(buffer).convert("RGB")


COPIES = {
    "re-encoded": reencoded,
    "scaled": scaled,
    "scaled and re-encoded": packed,
    "cropped": cropped,
    "subtitled": subtitled,
    "watermarked": watermarked,
}
"""How copies of pictures and of clips are made."""
PLAIN_COPIES = ("re-encoded", "scaled", "scaled and re-encoded", "cropped")


def still(picture: Picture, rng: Draw, seconds: float = SECONDS) -> Frames:
    """Return the frames of a camera that stands still, with its noise."""
    pixels = np.asarray(picture.resize(CLIP_SIZE), np.float32)
    noise = [rng.normal(0, 2, pixels.shape).astype(np.float32) for _ in range(4)]
    frames = [np.clip(pixels + each, 0, 255).astype(np.uint8) for each in noise]
    return [frames[at % 4] for at in range(round(seconds * RATE))]


def shown(pictures: list[Picture]) -> Frames:
    """Return the frames of slides, one after the other, at 640 x 360."""
    each = [np.asarray(one.resize((640, 360))) for one in pictures]
    return [each[at * len(each) // round(SECONDS * RATE)] for at in range(round(SECONDS * RATE))]


class Writing:
    """A folder that is filled with pairs."""

    def __init__(self, folder: Path, clips: Path | None, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._numbers = folder, count()
        self.rng = np.random.default_rng(seed)
        self._scenes = self._drawn(clips)
        self.pairs: list[Pair] = []

    def _drawn(self, clips: Path | None) -> Iterator[Picture]:
        for picture, _ in originals(clips, self.rng):
            picture.thumbnail((1280, 1280))
            yield picture

    def scene(self) -> Picture:
        return next(self._scenes).copy()

    def pictures(self, kind: str, is_copy: bool, one: Picture, other: Picture) -> None:
        names = (f"{next(self._numbers):05d}.png", f"{next(self._numbers):05d}.png")
        for name, picture in zip(names, (one, other), strict=True):
            picture.save(self.folder / name, compress_level=1)
        self.pairs.append(Pair(kind=kind, is_copy=is_copy, names=names))

    def videos(self, kind: str, is_copy: bool, one: Frames, other: Frames, quality: int) -> None:
        names = (f"{next(self._numbers):05d}.mp4", f"{next(self._numbers):05d}.mp4")
        for name, frames, crf in zip(names, (one, other), (23, quality), strict=True):
            write_clip(self.folder / name, frames, quality=crf)
        self.pairs.append(Pair(kind=kind, is_copy=is_copy, names=names))


def write_pairs(
    folder: Path, *, clips: Path | None, seed: int, each: int = 10, videos: int = 6
) -> list[Pair]:
    """Write `each` pairs of pictures of every kind, and `videos` pairs of videos; as many of them
    are copies as are not. Return the truth about them."""
    made = Writing(folder, clips, seed)
    _write_pictures(made, each)
    _write_videos(made, videos)
    return made.pairs


def _write_pictures(made: Writing, each: int) -> None:
    rng = made.rng
    for _ in range(each):
        for kind, copy in COPIES.items():
            scene = made.scene()
            made.pictures(f"photo {kind}", True, scene, copy(scene, rng))
        for kind in PLAIN:
            for name in PLAIN_COPIES:
                if name == "scaled" and kind in ("page", "chat"):
                    continue
                one = plain(rng, kind)
                made.pictures(f"{kind} {name}", True, one, COPIES[name](one, rng))
    for _ in range(each):
        for kind in PLAIN:
            for change in ("all words", "a word", "a line"):
                if change != "a line" or PLAIN[kind][1] > 1:
                    made.pictures(f"{kind}, {change}", False, *other_words(rng, kind, change))
        ground = Image.new("RGB", (1000, 700), "#f4f4f4")
        made.pictures("red and green thing on white", False, *coloured(rng, ground))
        made.pictures("red and green thing in a scene", False, *coloured(rng, made.scene()))
        made.pictures("red and green field", False, *fields(rng))
        for _ in range(3):
            made.pictures("still camera, a thing moved", False, *moved(rng, made.scene()))
        one, other = other_words(rng, "slide", "all words")
        made.pictures("slide, all words, re-encoded", False, one, packed(other, rng))
        one, other = coloured(rng, made.scene())
        made.pictures("red and green thing, re-encoded", False, one, packed(other, rng))
        one, other = other_words(rng, "chat", "all words")
        made.pictures("chat, all words, re-encoded", False, one, reencoded(other, rng))


def _write_videos(made: Writing, each: int) -> None:
    rng = made.rng
    for _ in range(each):
        for kind, copy in COPIES.items():
            if kind == "scaled and re-encoded":
                continue
            body, seed = (
                moving(made.scene(), rng)[: round(SECONDS * RATE)],
                int(rng.integers(1 << 20)),
            )
            if kind == "re-encoded":
                made.videos(f"clip {kind}", True, body, body, 36)
            else:
                other = [
                    np.asarray(copy(Image.fromarray(one), np.random.default_rng(seed)))
                    for one in body
                ]
                made.videos(f"clip {kind}", True, body, other, 23)
        slides = shown([plain(rng, "slide") for _ in range(4)])
        made.videos("clip of slides re-encoded", True, slides, slides, 36)
        for kind, pair in (
            ("still camera, a thing moved", moved(rng, made.scene())),
            ("red and green thing", coloured(rng, made.scene())),
        ):
            frames = [still(one, rng) for one in pair]
            made.videos(f"clip, {kind}", False, frames[0], frames[1], 23)
        for kind, change in (
            ("slide", "all words"),
            ("title slide", "a word"),
            ("slide", "a line"),
        ):
            pairs = [other_words(rng, kind, change) for _ in range(4)]
            one, other = (shown([pair[at] for pair in pairs]) for at in range(2))
            made.videos(f"clip of {kind}s, {change}", False, one, other, 23)
        ground = moving(made.scene(), rng)[: round(SECONDS * RATE)]
        colours, at = alike_colours(rng), (rng.uniform(0, 350), rng.uniform(0, 180))
        both = []
        for colour in colours:
            scenes = [Image.fromarray(each) for each in ground]
            for scene in scenes:
                shoe(ImageDraw.Draw(scene), at, 110, colour)
            both.append([np.asarray(scene) for scene in scenes])
        made.videos("clip, red and green thing, moving camera", False, both[0], both[1], 23)

"""Draws slides, chats and pages, and pairs of pictures that only texts or colours tell apart."""

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests.support.builders.planted import CLIP_SIZE, RATE, Frames, Picture

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


def still(picture: Picture, rng: Draw, seconds: float = SECONDS) -> Frames:
    """Return the frames of a camera that stands still, with its noise."""
    pixels = np.asarray(picture.resize(CLIP_SIZE), np.float32)
    noise = [rng.normal(0, 2, pixels.shape).astype(np.float32) for _ in range(4)]
    frames = [np.clip(pixels + each, 0, 255).astype(np.uint8) for each in noise]
    return [frames[at % 4] for at in range(round(seconds * RATE))]

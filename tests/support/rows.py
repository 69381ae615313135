"""Captions that are hard to write down."""

from artifacts.texts.captions import Caption

HARD = (
    "Ein Vögelchen 🐦 über dem Fluß",
    "two\nlines, a \"quote\" and 'another'",
    "a\r\nb\rc",
    "=cmd|' /C calc'!A0",
    "+1 -1 @x",
    "",
    "NA",
    "00123",
    " spaces  ",
    "a --> b <i>& c</i> &amp;",
    "00:00:01.000 --> 00:00:02.000",
    "comma, semicolon; tab\tend",
    "42",
    "שלום مرحبا 你好",
    "{\\an8}NOTE a\u2028b\x0bc",
)


def caption(text: str, start: float = 0.0, end: float = 30.0, *, media: str = "a/b.mp4") -> Caption:
    """What was said of one chunk."""
    return Caption(
        media_path=media,
        source="a",
        start=start,
        end=end,
        caption=text,
        model="demo",
        prompt="Describe.",
        precision={"vision": "fp32", "language": "bf16"},
        frames=(start, start + 1 / 3),
        features="ab" * 32,
        tokens=7,
        ended="stop",
        logprob=-0.25,
        margin=1.5,
        margin_at=0,
        warnings=('cut short: its "end", 1 of 2',) if start else (),
    )


def hard_rows() -> list[Caption]:
    """A chunk for each of HARD, of odd length."""
    length = 10 / 3
    return [
        caption(text, n * length, (n + 1) * length, media=f"[1] Übung, teil {n}.mp4")
        for n, text in enumerate(HARD)
    ]

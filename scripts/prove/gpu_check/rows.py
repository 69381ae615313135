"""The rows of a GPU check: what was found beside what was expected. Imports no model library."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

from tests.support.builders.common import cells, heads

Verdict = Literal["ok", "differs", "skipped", "failed"]
PASSING: tuple[Verdict, ...] = ("ok", "skipped")
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One fact."""

    name: str
    expected: str
    found: str
    """What was found; why, where it was skipped; the last words, where it failed."""
    verdict: Verdict
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The same as numbers with units in their names, for programs."""

    @property
    def values(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def cells(self) -> tuple[str, ...]:
        """As a line of a table."""
        return (self.name, self.expected, self.found, self.verdict)


def row(name: str, expected: str, found: str, good: bool, /, **figures: Any) -> Row:
    """What was found, and whether it is what was expected."""
    verdict: Verdict = "ok" if good else "differs"
    return Row(name=name, expected=expected, found=found, verdict=verdict, figures=figures)


def message_of(name: str, found: str, /, **figures: Any) -> Row:
    """Return a row that is only reported: no rule says what it should be."""
    return row(name, "reported", found, bool(found), **figures)


def skipped(name: str, why: str, expected: str = "") -> Row:
    """A fact that cannot be found out here."""
    return Row(name=name, expected=expected, found=why, verdict="skipped")


def failed(name: str, words: str) -> Row:
    """A check that came to no answer."""
    return Row(name=name, expected="an answer", found=f"failed: {words}", verdict="failed")


def exit_status(rows: Iterable[Row]) -> int:
    """0 when nothing differs and nothing failed, else 1."""
    return 0 if all(each.verdict in PASSING for each in rows) else 1


def summary(rows: Iterable[Row]) -> str:
    """How many rows there are of each verdict, in words."""
    verdicts = [each.verdict for each in rows]
    order: tuple[Verdict, ...] = ("ok", "differs", "failed", "skipped")
    counts = [f"{verdicts.count(kind)} {kind}" for kind in order if kind in verdicts]
    return f"{len(verdicts)} rows: {', '.join(counts) or 'none'}"


def mib(count: float) -> str:
    """Bytes as people read them beside a card's size."""
    return f"{count / MIB:,.0f} MiB"


def one_line(text: str, most: int = 200) -> str:
    """Words that fit a cell."""
    return " ".join(text.split())[:most]


ROOT = Path(__file__).resolve().parents[3]
DEMO = "demo"
SAMPLES = ROOT / "penstock_demo" / "samples"
TINY = "tiny"
"""Size of the random model on a stand-in."""
PICTURES, SIDE = 72, 64
"""How many pictures are rendered, more than a step has rows; and pixels of their edges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a check works with."""

    folder: Path
    """Where runs leave their outputs and stores; the checks share it."""
    model: str = DEMO
    """A hub id or a folder, checked beside the demo's; the demo's: one of random weights is."""
    source: Path = SAMPLES
    """What the named model captions."""
    samples: Path = SAMPLES
    """What the demo model and the random one caption."""
    size: str = ""
    """Of `random_model.SHAPES`; empty: the first that fits."""
    device: str = "cuda:0"

    @property
    def media(self) -> Path:
        """What the model beside the demo's captions."""
        return self.samples if self.model == DEMO else self.source

    def to_json(self) -> str:
        fields = {name: str(getattr(self, name)) for name in self.__dataclass_fields__}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "Setting":
        values = json.loads(text)
        for name in ("folder", "source", "samples"):
            values[name] = Path(values[name])
        return cls(**values)


def pictures(folder: Path) -> Path:
    """Render pictures of the demo's world, for an environment that cannot decode videos."""
    from PIL import Image

    from penstock_demo.render import render_frames
    from penstock_demo.world import sample_clip

    rng = random.Random(5)
    folder.mkdir()
    for number in range(PICTURES):
        (frame,) = render_frames(sample_clip(rng, "trained"), [0.5], SIDE, SIDE)
        Image.fromarray(frame).save(folder / f"picture-{number:02}.png")
    return folder


PAGE = ROOT / "docs" / "gpu.md"
BEGIN, END = "<!-- checked -->\n", "<!-- end of checked -->"
HEADS = ("check", "expected", "found", "verdict")
WIDTHS = (44, 30, 52, 7)
"""Characters of the columns on a terminal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """All that one check of a card found."""

    card: str
    """Its name, driver and versions, in words."""
    date: str
    models: tuple[str, ...]
    rows: tuple[Row, ...]
    seconds: float

    @property
    def words(self) -> str:
        """What stands above the table."""
        models = " and ".join(self.models)
        return (
            f"{self.card}; model {models}; {self.date}; {self.seconds:.0f} s. {summary(self.rows)}."
        )


def terminal_lines(texts: Sequence[str]) -> list[str]:
    """One row of the table, over as many lines as its longest cell needs."""
    columns = [wrap(cell, width) or [""] for cell, width in zip(texts, WIDTHS, strict=True)]
    height = max(map(len, columns))
    padded = [column + [""] * (height - len(column)) for column in columns]
    lines = zip(*padded, strict=True)
    return [
        "  ".join(f"{part:{width}}" for part, width in zip(line, WIDTHS, strict=True)).rstrip()
        for line in lines
    ]


def markdown(result: Result) -> str:
    """The table, with what it was made on above it."""
    rows = (cells(cell.replace("|", "/") for cell in each.cells) for each in result.rows)
    return "\n".join([result.words, "", heads(" | ".join(HEADS)), *rows]) + "\n"


def put(page: str, text: str) -> str:
    """The page with this between its two marks. Raises ValueError where they are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN.strip()} with {END} behind it")
    return f"{before}{begin}{text}{end}{after}"


def write(result: Result, out: Path | None) -> list[Path]:
    """Into the page of the docs, or as files of their own into a folder."""
    if out is None:
        PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), markdown(result)), encoding="utf-8")
        return [PAGE]
    out.mkdir(parents=True, exist_ok=True)
    messages = {
        "card": result.card,
        "date": result.date,
        "models": list(result.models),
        "seconds": round(result.seconds, 1),
        "rows": [each.values for each in result.rows],
    }
    files = {
        "gpu.md": f"# What the GPU check found\n\n{markdown(result)}",
        "gpu.json": json.dumps(messages, indent=1) + "\n",
    }
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in files]

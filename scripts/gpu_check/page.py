"""Rows as a table for the terminal, for docs/gpu.md and for programs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from benchmarks._common import cells, heads
from scripts.gpu_check.rows import Row, summary
from scripts.gpu_check.setting import ROOT

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
    told = {
        "card": result.card,
        "date": result.date,
        "models": list(result.models),
        "seconds": round(result.seconds, 1),
        "rows": [each.values for each in result.rows],
    }
    files = {
        "gpu.md": f"# What the GPU check found\n\n{markdown(result)}",
        "gpu.json": json.dumps(told, indent=1) + "\n",
    }
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in files]

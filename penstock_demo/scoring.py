"""Scores captions of clips against the truth, by attribute and by group of pairs."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penstock_demo.words import ATTRIBUTES, score

COLUMNS: Final = ("exact", *ATTRIBUTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """The truth about one clip."""

    file: str
    """Name of the clip within its folder."""
    caption: str
    """The only right caption."""
    trained: bool
    """Whether all its colour and shape pairs occur in training clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """Hits among tries."""

    hits: int
    """Number of right ones."""
    tries: int
    """Number of all."""

    @property
    def percent(self) -> float:
        """Return the share of hits in percent; NaN without tries."""
        return 100 * self.hits / self.tries if self.tries else float("nan")

    def __str__(self) -> str:
        return f"{self.percent:.1f}" if self.tries else "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The score of some of the clips."""

    name: str
    """Name of these clips."""
    clips: int
    """Number of these clips."""
    tallies: Mapping[str, Tally]
    """One for each of `COLUMNS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoreboard:
    """The score of all clips, of those with trained pairs only, and of the others."""

    groups: tuple[Group, ...]
    """All, trained, never trained."""
    misses: tuple[tuple[Truth, str | None], ...]
    """Clips without an exact caption, with the model's caption; None if there was none."""

    def table(self) -> str:
        """Return the table as text: one row per group, in percent."""
        rows: list[tuple[str, ...]] = [("pairs", "clips", *COLUMNS)]
        rows += [
            (group.name, str(group.clips), *(str(group.tallies[name]) for name in COLUMNS))
            for group in self.groups
        ]
        widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


def _group(name: str, pairs: list[tuple[Truth, str]]) -> Group:
    hits: dict[str, list[bool]] = {column: [] for column in COLUMNS}
    for truth, output in pairs:
        for column, matches in score(output, truth.caption).items():
            hits[column].extend(matches)
    tallies = {column: Tally(hits=sum(tries), tries=len(tries)) for column, tries in hits.items()}
    return Group(name=name, clips=len(pairs), tallies=tallies)


def score_captions(truths: Iterable[Truth], captions: Mapping[str, str]) -> Scoreboard:
    """Score captions keyed by clip file; a clip without a caption counts as wrong throughout."""
    pairs = [(truth, captions.get(truth.file, "")) for truth in truths]
    return Scoreboard(
        groups=(
            _group("all", pairs),
            _group("trained", [pair for pair in pairs if pair[0].trained]),
            _group("never trained", [pair for pair in pairs if not pair[0].trained]),
        ),
        misses=tuple(
            (truth, captions.get(truth.file))
            for truth, output in pairs
            if output.strip() != truth.caption
        ),
    )


def read_truths(path: Path) -> list[Truth]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [Truth(**json.loads(line)) for line in lines if line.strip()]

"""Gathers what the report shows of a run that gave labels, from the run's own lines; draws nothing
and opens no media file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.labels import Labelled, Scored, spans_of
from artifacts.shapes import Left, Maybe, count, number, read_json, read_jsonl, text
from flows.results.labels.writing import LINES, MEDIA, REPORT
from flows.results.report.media import NAME, PLACE, beside, shown_medium

AGAIN = "Run the same `penstock label` again, which writes it anew"
SHEET = 200
"""Pictures and videos that the page shows; the rest is in the lines."""
MOST_LINES = 100_000
"""Lines that are read for it: those of a day of video."""
SCORED = {
    "label": text,
    "score": number,
    "passed": lambda value: isinstance(value, bool),
    "whole": number,
    "box": Maybe((number, number, number, number)),
    "threshold": Maybe(number),
    "why": text,
}
LINE = {**NAME, "time": Maybe(number), "labels": [SCORED]}
COUNT = {
    "label": text,
    "passed": count,
    "median": Maybe(number),
    "deviation": Maybe(number),
    "threshold": Maybe(number),
    "from": text,
    "bins": Left([count]),
}
COUNTS = {
    "pictures": count,
    "labelled": count,
    "low": Left(number),
    "high": Left(number),
    "labels": [COUNT],
}
Lines = list[dict[str, Any]]


def label_counts(out: Path) -> dict[str, Any] | None:
    """Return what each label of a run was given to, those given most first; None where the run has
    written none yet. Raises EnvironmentFault."""
    if not (out / REPORT).exists():
        return None
    found: dict[str, Any] = read_json(out / REPORT, COUNTS, AGAIN, lambda value: value)
    found = {name: found.get(name) for name in COUNTS}
    found["labels"] = sorted(found["labels"], key=lambda one: -one["passed"])
    return found


def labelled_media(out: Path, folder: Path) -> list[dict[str, Any]]:
    """Return the first media of a run into `out`, as a page in `folder` needs them: as of captions,
    with `labels`, each of them (name, score, box in pixels or None). Raises EnvironmentFault."""
    places = read_jsonl(out / MEDIA, PLACE, AGAIN, SHEET)
    # A run of an earlier version wrote no places, and one at work writes them at the end.
    most = sum(place["captions"] for place in places) or SHEET
    lines = read_jsonl(out / LINES, LINE, AGAIN, min(most, MOST_LINES))
    return [_medium(place, said, folder) for place, said in beside(places, lines) if said]


def _medium(place: dict[str, Any], lines: Lines, folder: Path) -> dict[str, Any]:
    medium, still = shown_medium(place, folder), all(line["time"] is None for line in lines)
    given = [one for line in lines for one in line["labels"] if one["passed"]]
    medium["labels"] = [[one["label"], one["score"], one["box"]] for one in given] if still else []
    said = [(0.0, 0.0, ", ".join(one["label"] for one in given))] if still else _stretches(lines)
    medium["captions"] = [[*stretch, 0] for stretch in said]
    return medium


def _stretches(lines: Lines) -> list[tuple[float, float, str]]:
    """Return the stretches of a video with their labels. Where it ends is not known: the last frame
    stands for as long as the one before it."""
    rows = [_row(line) for line in lines]
    times = [row.time or 0.0 for row in rows]
    end = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1.0)
    return [(span.start, span.end, ", ".join(span.labels)) for span in spans_of(rows, end)]


def _row(line: Mapping[str, Any]) -> Labelled:
    scored: tuple[Scored, ...] = tuple(line["labels"])
    return Labelled(
        media_path=line["media_path"],
        source=line["source"],
        time=line["time"],
        labels=scored,
        top="",
        model="",
        precision={},
        features="",
        labels_digest="",
    )

"""Picks a few of what a run wrote, for people who judge it on Prefect's page. Knows no server."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.regular import open_regular
from flows.deployments.pictures import pictures_of
from flows.job.prepare import Job
from flows.media.media_files import MediaFile
from flows.pipelines import CAPTION, LABELS, product_of
from flows.results.labels.writing import LINES

SAMPLES = 6
MOST_LETTERS = 400
"""Letters of a caption that are shown: a page is to be read at one glance."""
FILES = {product_of(CAPTION): "captions.jsonl", LABELS: LINES}
"""What a run makes → the file whose lines are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """What was said of a few media, and small pictures of those that could be had."""

    rows: tuple[tuple[str, str], ...] = ()
    """Name and what was said of it, each."""
    pictures: Mapping[int, bytes] = field(default_factory=dict)
    """Place of a row → a JPEG."""


def samples_of(job: Job) -> Samples:
    """Return the first, the last and some between of what a run wrote. Raises what reading it
    raises."""
    name = FILES.get(product_of(job.stages), "")
    if not name or not (job.out / name).exists():
        return Samples()
    files = {(file.source, file.media_path): file for file in job.files}
    rows = list(few_of(job.out / name))
    media = [(files.get((row["source"], row["media_path"])), row) for row in rows]
    there = {at: (file.path, _moment(file, row)) for at, (file, row) in enumerate(media) if file}
    said = tuple((_name(row), _said(row)) for row in rows)
    return Samples(rows=said, pictures=pictures_of(there))


def few_of(path: Path, most: int = SAMPLES) -> Iterator[Mapping[str, Any]]:
    """Yield a few lines of JSON, spread over a file, which is not held in memory."""
    with open_regular(path) as file:
        last = sum(1 for _ in file) - 1
        file.seek(0)
        wanted = {round(at * last / max(1, most - 1)) for at in range(most)}
        for number, line in enumerate(file):
            if number in wanted:
                yield json.loads(line)


def _moment(file: MediaFile, row: Mapping[str, Any]) -> float | None:
    """Return which frame of a video is shown: of those that the model saw, one in the middle."""
    if file.kind == "image":
        return None
    if "time" in row:
        return float(row["time"] or 0.0)
    frames = row["frames"] or [row["start"]]
    return float(frames[len(frames) // 2])


def _name(row: Mapping[str, Any]) -> str:
    """Return a medium's name, and from when on it is spoken of."""
    start, end = (row["time"],) * 2 if "time" in row else (row["start"], row["end"])
    if not start and not end:
        return str(row["media_path"])
    when = f"{start:.1f} s" if start == end else f"{start:.1f} to {end:.1f} s"
    return f"{row['media_path']}, {when}"


def _said(row: Mapping[str, Any]) -> str:
    """Return a caption, with its prompt's name where there are several, or the labels given."""
    if "labels" in row:
        given = [label["label"] for label in row["labels"] if label["passed"]]
        said = ", ".join(given) or f"no label (most like {row['top']})"
    else:
        said = f"{row['name']}: {row['caption']}" if row.get("name") else str(row["caption"])
    return said if len(said) <= MOST_LETTERS else f"{said[:MOST_LETTERS]}…"

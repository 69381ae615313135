"""What a notebook's cell shows of a run."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from artifacts.disk.json_records import read_jsonl_file
from artifacts.disk.paths import folder_named
from artifacts.errors import UsageError
from artifacts.texts.captions import one_line
from artifacts.texts.labels import read_labels
from artifacts.wording import counted
from flows.commands.label.files import LINES
from flows.core.console.lines import printable
from flows.core.media.output_rows import MediaRow
from flows.outputs.media_rows import RUN_AGAIN, failed_media, is_other, media_with_captions
from flows.outputs.unwritten import decisions_on
from penstock.arguments import path_of as path_given

FEW = 5
"""Captions that a notebook shows of a run."""
MOST = 20
"""Captions that are shown unless told otherwise."""
SIDE = 240
"""Pixels of the longer side of a thumbnail."""


@dataclass(frozen=True, slots=True)
class ShownCaption:
    """One caption, with where its medium is."""

    media_path: str
    start: float
    end: float
    name: str
    """Name of its prompt; empty: the run has one prompt."""
    text: str
    path: str
    """Path of the medium; empty: it is not there any more."""
    review: str = ""
    """What a person did with it: corrected, accepted or rejected."""
    at: float | None = None
    """Second of the frame that is shown; None: that of the start, or an image."""

    @property
    def place(self) -> str:
        """Return the medium, of a video the seconds, and the review."""
        seconds = "" if self.at is None else f"{self.at:.4g} s"
        if self.end > self.start:
            seconds = f"{self.start:.4g} to {self.end:.4g} s"
        return ", ".join(filter(None, [self.media_path, seconds, self.name, self.review]))


@dataclass(frozen=True, slots=True)
class Shown:
    """Captions of a folder. A notebook shows them as a table with thumbnails, which needs neither
    a server nor the media once it is drawn; elsewhere they are lines of text."""

    captions: tuple[ShownCaption, ...]
    """The first of them, or a share of each file's."""
    total: int
    """Number of all captions of the folder."""
    failures: tuple[str, ...] = ()
    """Media that failed, with the reason."""
    noun: str = "caption"
    """What one of them is called."""

    def __repr__(self) -> str:
        lines = [f"{caption.place}: {one_line(caption.text)}" for caption in self.captions]
        return "\n".join(map(printable, [*lines, self._last_line, *self.failures]))

    def _repr_html_(self) -> str:
        rows = "".join(map(_row, self.captions))
        failed = "".join(f"<br>{html.escape(line)}" for line in self.failures)
        return f"<table>{rows}</table>{html.escape(self._last_line)}{failed}"

    @property
    def _last_line(self) -> str:
        shown = f", {len(self.captions)} shown" if len(self.captions) < self.total else ""
        failed = f", {counted(len(self.failures), 'failure')}" if self.failures else ""
        return f"{counted(self.total, self.noun)}{shown}{failed}"


def show(out: str | PathLike[str] = "penstock-out", *, most: int = MOST) -> Shown:
    """Return the first captions of a run's folder, for a notebook to show beside thumbnails. Raises
    PenstockError."""
    return shown_of(folder_named(path_given("out", out), "out"), most)


def shown_of(out: Path, most: int) -> Shown:
    """Return the first captions of a folder. Raises EnvironmentFault."""
    labels = not (out / "captions.jsonl").exists() and (out / LINES).exists()
    rows = list(_labels(out) if labels else _captions(out))
    if not rows and not labels and not (out / "captions.jsonl").exists():
        raise UsageError(
            f"{out} has no captions", hint="Run penstock.caption first, and give its out"
        )
    failures = tuple(f"{row.media_path}: {row.message}" for row in failed_media(out))
    noun = "image or frame" if labels else "caption"
    return Shown(captions=tuple(rows[:most]), total=len(rows), failures=failures, noun=noun)


def _labels(out: Path) -> Iterator[ShownCaption]:
    entries = read_jsonl_file(MediaRow, out / "media.jsonl", RUN_AGAIN)
    paths = {m.media_path: "" if is_other(m) else m.path for m in entries}
    for row in read_labels(out / LINES):
        text = ", ".join(row.given) or f"none; the nearest is {row.top}"
        path = paths.get(row.media_path, "")
        yield ShownCaption(row.media_path, 0.0, 0.0, "", text, path, at=row.time)


def _captions(out: Path) -> Iterator[ShownCaption]:
    decided = None
    for entry, rows in media_with_captions(out):
        path = "" if is_other(entry) else entry.path
        for row in rows:
            decided = decided or decisions_on(out)
            where = row.media_path, row.start, row.end, row.name
            text, review, is_written = decided(row)
            if not is_written:
                review = f"{review or 'undone'}, not written yet"
            yield ShownCaption(*where, text, path, review)


def _row(caption: ShownCaption) -> str:
    from flows.outputs.thumbnails import data_address

    time = caption.start if caption.at is None and caption.end > caption.start else caption.at
    picture = data_address(caption.path, time, SIDE) if caption.path else ""
    picture = f'<img src="{picture}" alt="">' if picture else "-"
    words = f"{html.escape(caption.place)}<br>{html.escape(caption.text)}"
    return f'<tr><td>{picture}</td><td style="text-align:left;max-width:40em">{words}</td></tr>'

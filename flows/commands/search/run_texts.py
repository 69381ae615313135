"""Searches the words of one run: its captions, summaries, answers and labels.

The index of words lies in the user's store, so that a folder of another person is never written to.
It is made anew when a file of the run changes, and replaced as a whole: readers see the old one or
the new one, and what a killed process left is deleted by the next.
"""

import os
import sqlite3
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from artifacts.digests import digest_of
from artifacts.disk.faults import disk_faults
from artifacts.disk.files import encoded, own_folder, replace_file
from artifacts.disk.json_records import line_reader
from artifacts.disk.json_shapes import Json, unreadable
from artifacts.disk.json_types import Number, Text
from artifacts.disk.locks import hold
from artifacts.disk.regular_files import is_denied, open_regular
from artifacts.disk.stamps import stamp_of
from artifacts.errors import EnvironmentFault
from artifacts.index.shard import TEXTS as TEXT_COLUMNS
from artifacts.index.shard import medium_of
from artifacts.index.where import Condition, batch_of
from artifacts.index.words import (
    FOLDER,
    MOST_RANKED,
    SUFFIX,
    MediumLine,
    TextLine,
    WordIndex,
    build,
)
from artifacts.records.store import open_store
from artifacts.texts.captions import Cue
from artifacts.texts.edits import REJECTED
from artifacts.texts.questions import QuestionAnswer
from flows.core.media.output_rows import MediaRow
from flows.outputs.media_rows import RUN_AGAIN, ChapterRow

MEDIA = ("media.jsonl", "labels/media.jsonl", "answers/media.jsonl")
TEXTS = (
    *("captions.jsonl", "summaries.jsonl", "answers.jsonl", "labels.jsonl"),
    *("labels/labels.jsonl", "answers/answers.jsonl"),
)
FILES = (*MEDIA, *TEXTS)
FILTERED = 500
"""Lines that a condition is put to at once."""
Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedText:
    """A label of an image or a frame."""

    label: Text
    passed: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRow:
    """A line of one of TEXTS."""

    media_path: Text
    source: Text
    start: Number = 0.0
    end: Number = 0.0
    time: Number | None = None
    features: Text = ""
    review: Text = ""
    caption: Text = ""
    answers: dict[str, QuestionAnswer] | None = None
    summary: Text = ""
    chapters: list[ChapterRow] = field(default_factory=list)
    labels: list[RankedText] = field(default_factory=list)

    def parts(self) -> list[Cue]:
        """Return the texts of the line with their times; a rejected caption has none."""
        if self.review == REJECTED:
            return []
        start, end = (self.start, self.end) if self.time is None else (self.time, self.time)
        if self.chapters:
            start, end = self.chapters[0].start, self.chapters[-1].end
        answers = (f"{name}: {answer.text}" for name, answer in (self.answers or {}).items())
        labels = ", ".join(label.label for label in self.labels if label.passed)
        text = "\n".join(filter(None, (self.caption, self.summary, labels, *answers)))
        chapters = (Cue(part.start, part.end, part.text) for part in self.chapters)
        return [Cue(start, end, text), *chapters]


R = TypeVar("R", MediaRow, TextRow)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextHit:
    """A text of a run, and the medium that it is about."""

    medium: MediaRow
    key: str
    """Name of the features that it was made of."""
    time: Span | None
    """Start and end in seconds; None for an image."""
    text: str

    @property
    def path(self) -> str:
        return self.medium.address or self.medium.path or self.medium.media_path


class RunTexts:
    """The texts of one run as they were when its files were opened. Its methods may be called on
    several threads."""

    def __init__(self, folder: Path, store: str, on_build: Callable[[str], None]) -> None:
        """Open the files of a run and the index of their words, which is made if it is missing or
        of other files. `on_build` gets what is done then. Raises PenstockError."""
        self.folder = Path(os.path.realpath(folder))
        self._files: dict[int, int] = {}
        """Number of a file in FILES → its descriptor."""
        closing = ExitStack()
        self.close = weakref.finalize(self, closing.close)
        for number, name in enumerate(FILES):
            try:
                opened = closing.enter_context(open_regular(self.folder / name))
                self._files[number] = opened.fileno()
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                raise unreadable(self.folder / name, error, RUN_AGAIN) from error
        if max(self._files, default=0) < len(MEDIA):
            raise EnvironmentFault(
                f"the captions in {self.folder} are gone",
                hint="Mount its disk again, or run the same `penstock caption` again",
            )
        # What was opened stays as it is: who writes a run replaces its files.
        self._source = encoded([[FILES[n], *stamp_of(file)] for n, file in self._files.items()])
        self._index = self._opened(open_store(store).local / FOLDER, on_build)
        closing.callback(self._index.close)

    def is_current(self) -> bool:
        """Return whether the files of the run are those that were opened."""
        now: list[Json] = []
        for name in FILES:
            with suppress(OSError):
                now.append([name, *stamp_of(self.folder / name)])
        return encoded(now) == self._source

    def find(
        self, query: str, count: int, condition: Condition | None = None, most: int = MOST_RANKED
    ) -> list[TextHit]:
        """Return the best texts for what `query_of` returned, each chunk of a medium once. `most`
        is as in `WordIndex.find`. Raises EnvironmentFault."""
        hits: dict[tuple[str, Span | None], TextHit] = {}
        lines = self._index.find(query, most)
        step = count if condition is None else FILTERED
        for at in range(0, len(lines), step):
            some = [self._hit(line) for line in lines[at : at + step]]
            if condition is not None:
                kept = condition.of(batch_of([*map(_columns, some)], TEXT_COLUMNS))
                some = [hit for hit, is_kept in zip(some, kept, strict=True) if is_kept]
            for hit in some:
                hits.setdefault((hit.path, hit.time), hit)
            if len(hits) >= count:
                break
        if condition is not None and len(hits) < count and len(lines) == most:
            return self.find(query, count, condition, -1)  # those that meet it come later
        return [*hits.values()][:count]

    def of_moment(self, path: str, content: str, time: Span | None) -> TextHit | None:
        """Return the first text about a medium at a time, or about a copy of it, which a path
        through a link is, too. Raises EnvironmentFault."""
        hits = map(self._hit, self._index.about(medium_of(path), _content_of(content)))
        return next((hit for hit in hits if overlap(hit.time, time)), None)

    def _hit(self, line: TextLine) -> TextHit:
        row = self._row(TextRow, line.file, line.at, line.size)
        start, end, text = row.parts()[line.part]
        _, _, file, at, size = self._index.medium(line.medium)
        medium = self._row(MediaRow, file, at, size) if size else _unknown(row, start == end == 0)
        time = None if medium.kind == "image" else (start, end)
        return TextHit(medium=medium, key=row.features, time=time, text=text)

    def _row(self, kind: type[R], file: int, at: int, size: int) -> R:
        read = line_reader(kind, self.folder / FILES[file], RUN_AGAIN)
        return read(os.pread(self._files[file], size, at), f" at byte {at:,}")

    def _lines(self, kind: type[R], file: int) -> Iterator[tuple[int, int, R]]:
        """Yield the place, the size and the content of each line of a file."""
        if file not in self._files:
            return
        read = line_reader(kind, self.folder / FILES[file], RUN_AGAIN)
        with open(os.dup(self._files[file]), "rb") as lines:
            at = lines.seek(0)
            for line in lines:
                if line.strip():
                    yield at, len(line), read(line, f" at byte {at:,}")
                at += len(line)

    def _opened(self, place: Path, on_build: Callable[[str], None]) -> WordIndex:
        path = place / f"{digest_of(os.fspath(self.folder))[:32]}{SUFFIX}"
        if index := self._usable(path):
            return index
        try:
            with disk_faults(place):
                place.mkdir(parents=True, exist_ok=True)
                with hold(
                    path.with_suffix(".lock"), lambda other: on_build(f"waiting for {other}")
                ):
                    if index := self._usable(path):  # made by whoever had the lock
                        return index
                    on_build(f"indexing the words of {self.folder}")
                    with own_folder(place, f"{path.stem}-") as folder:
                        index = self._built(folder / path.name)
                        replace_file(folder / path.name, path)
                        return index
        except EnvironmentFault as error:
            if not is_denied(error.__cause__):
                raise
        with tempfile.TemporaryDirectory(prefix="penstock-search-") as own:
            return self._built(Path(own) / path.name)  # it stays open

    def _usable(self, path: Path) -> WordIndex | None:
        """Return the index at a path if it is whole, and of the files that are open."""
        with suppress(sqlite3.Error):
            index = WordIndex(path)
            with suppress(sqlite3.Error, ValueError):
                if index.source() == self._source:
                    return index
            index.close()
        return None

    def _built(self, path: Path) -> WordIndex:
        numbers: dict[tuple[int, str, str], int] = {}
        media: list[MediumLine] = []
        for file in range(len(MEDIA)):
            for at, size, row in self._lines(MediaRow, file):
                numbers[(file, *row.name)] = len(media)
                place, content = medium_of(row.address or row.path), _content_of(row.content)
                media.append(MediumLine(place, content, file, at, size))
        unknown = len(media)
        media.append(MediumLine(0, 0, 0, 0, 0))

        def lines() -> Iterator[tuple[TextLine, str]]:
            for file, name in enumerate(TEXTS, len(MEDIA)):
                of = MEDIA.index(os.path.join(os.path.dirname(name), MEDIA[0]))
                for at, size, row in self._lines(TextRow, file):
                    medium = numbers.get((of, row.source, row.media_path), unknown)
                    for part, (_, _, text) in enumerate(row.parts()):
                        if text:
                            yield TextLine(file, at, size, part, medium), text

        try:
            build(path, self._source, media, lines())
            with open(path, "rb") as written:
                os.fsync(written.fileno())
            return WordIndex(path)
        except sqlite3.Error as error:
            raise EnvironmentFault(
                f"the index of words {path} cannot be written: {error}",
                hint="Make room on the disk of the store, or give another --store",
            ) from error


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run with texts."""
    return any((folder / name).is_file() for name in TEXTS)


def _content_of(digest: str) -> int:
    """Return the identity of a content; 0: it is unknown."""
    return medium_of(digest) if digest else 0


def overlap(one: Span | None, other: Span | None) -> bool:
    """Return whether two times of a medium have a moment in common; a frame is one, and so is an
    image."""
    if one is None or other is None:
        return one is other
    return max(one[0], other[0]) < min(one[1], other[1]) or _holds(one, other) or _holds(other, one)


def _unknown(row: TextRow, is_image: bool) -> MediaRow:
    """Return the medium of a line that no line of media describes: a command is writing them."""
    kind = "image" if is_image else "video"
    return MediaRow(media_path=row.media_path, source=row.source, kind=kind, url="", captions=0)


def _holds(one: Span, frame: Span) -> bool:
    return frame[0] == frame[1] and one[0] <= frame[0] <= one[1]


def _columns(hit: TextHit) -> dict[str, str | float | None]:
    """Return the columns of a text that a condition may be about."""
    texts = {"key": hit.key, "path": hit.path, "media_path": hit.medium.media_path}
    time = None if hit.time is None else hit.time[0]
    sides: dict[str, float | None] = dict.fromkeys(("x0", "y0", "x1", "y1"))
    return {**texts, "digest": hit.medium.content, "time": time, **sides, "level": 0}

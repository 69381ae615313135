"""Defines the marks of media and chunks, builds their tables, and decides which files are kept.

A mark has a name, a range and a value. The table has the marks of all files of a run. The module
writes the tables of marks, the list of what is kept, and the list of what is left out.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from artifacts.disk.files import json_text, write_text
from artifacts.disk.json_records import read_jsonl_file
from artifacts.disk.json_shapes import Json
from artifacts.disk.json_types import Text
from artifacts.errors import UsageError
from artifacts.index.near_duplicates import Copies, stars
from artifacts.index.where import Condition, Table, batch_of, values_shown
from artifacts.texts.tables import TABLES, utf8
from flows.core.job.job_file import JobFile
from flows.core.media.generated_files import GeneratedFiles
from flows.core.options.vectors import KEEP
from flows.outputs.folder.foreign_files import CHUNKS_FILE, KEPT_FILE, LEFT_OUT_FILE, MARKS_FILE
from stages.sift.measures import BLACK_SHARE, STEP_SECONDS, Marked, is_coloured

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from pyarrow import RecordBatch

BLURRED = 0.4
"""Sharpness below which a medium is blurred. Measured by `benchmarks/sift.py`."""
STILL = 0.5
"""Largest change of a block, of 255, at which two samples show the same frame."""
DIGITS = 4
"""Decimals of marks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One column of the tables."""

    range: str
    """Values that it has."""
    text: str
    """What it says."""
    of_chunks: bool = False
    """Whether chunks have it, too."""


TEXTS = ("media_path", "source", "path", "kind", "digest")
"""Columns that hold text."""
MARKS: Mapping[str, Mark] = {
    "sharpness": Mark(range="0 to 1", text="detail that a blur would remove", of_chunks=True),
    "blurred": Mark(range="0, 1", text=f"sharpness is below {BLURRED}", of_chunks=True),
    "exposure": Mark(range="0 to 1", text="mean brightness", of_chunks=True),
    "clipped": Mark(range="0 to 1", text="share of pure black and pure white", of_chunks=True),
    "motion": Mark(range="from 0", text="picture lengths per second", of_chunks=True),
    "black": Mark(range="0 to 1", text="share of black samples", of_chunks=True),
    "black_seconds": Mark(range="seconds", text="length of black stretches", of_chunks=True),
    "frozen": Mark(range="0 to 1", text="share without any change", of_chunks=True),
    "frozen_seconds": Mark(range="seconds", text="length of frozen stretches", of_chunks=True),
    "letterbox": Mark(range="0 to 1", text="share of the picture that dark bars cover"),
    "width": Mark(range="pixels", text="width as shown"),
    "height": Mark(range="pixels", text="height as shown"),
    "aspect": Mark(range="above 0", text="width / height"),
    "seconds": Mark(range="seconds", text="length of a video", of_chunks=True),
    "bilevel": Mark(range="0, 1", text="a picture of 1 bit, black and white"),
    "faults": Mark(range="count", text="faults found while decoding"),
    "exact": Mark(range="0, 1", text="its bytes equal those of a file with a shorter name"),
    "duplicate": Mark(range="0, 1", text="a copy, and another one is better"),
    "group": Mark(range="from 1", text="number of its group of copies"),
    "similar": Mark(range="0, 1", text="near a better one by vectors (--similar)"),
    "similar_group": Mark(range="from 1", text="number of its group by vectors"),
    "kept_duplicate": Mark(range="0, 1", text="a copy, and a better one is kept (--keep)"),
    "kept_group": Mark(range="from 1", text="its group among what meets the rest of --keep"),
}
"""Name → mark, in the order of the tables."""
FLAGS = {"exact": "", "duplicate": "group", "similar": "similar_group"}
"""Mark of the copies of one kind → mark of the number of their group."""
KEPT = ("kept_duplicate", "kept_group")
"""Marks that `--keep` makes, so that no condition names them."""
CHOICES = BEST, KEEP_TOO = "best", "keep"
"""What a person may decide: that a file is the best of its copies, or that it is kept, too."""
CHOICES_FILE = "choices.jsonl"
"""What a person decided of files on the page, in the folder of a run."""
Values = dict[str, Any]


WHOLE = ("0, 1", "count", "from 1", "pixels")
"""Ranges of whole numbers."""


def kinds_of(columns: Iterable[str]) -> dict[str, str]:
    """Return the type of each column, as the writers of tables know it."""
    counts = {name for name, mark in MARKS.items() if mark.range in WHOLE}
    return {n: "text" if n in TEXTS else "count" if n in counts else "number" for n in columns}


COLUMNS = (*TEXTS, *MARKS)
"""Columns of the tables."""


def medium_marks(marked: Marked) -> Values:
    """Return the marks of one medium that depend on it alone."""
    meta = marked.meta
    top, bottom, left, right = meta["bars"]
    of_video = meta["kind"] == "video"
    return {
        **_series_marks(marked, slice(None), meta["seconds"], of_video=of_video),
        "letterbox": rounded(1 - (1 - top - bottom) * (1 - left - right)),
        "width": meta["width"],
        "height": meta["height"],
        "aspect": rounded(meta["width"] / meta["height"]),
        "seconds": meta["seconds"] if of_video else None,
        "bilevel": int(meta.get("bilevel", False)),
        "faults": meta["faults"],
    }


def chunk_marks(marked: Marked, seconds: float) -> list[Values]:
    """Return the marks of each chunk of a video; of an image there are none."""
    if marked.meta["kind"] != "video":
        return []
    times, offset, rows = marked.column("time"), marked.meta["start"], []
    # As `penstock caption` cuts: a short rest belongs to the chunk before it.
    for at in range(max(1, math.ceil(round(marked.meta["seconds"] / seconds, 6)))):
        start, end = at * seconds, min((at + 1) * seconds, marked.meta["seconds"])
        low, high = np.searchsorted(times, (start, end))
        if low < high:
            marks = _series_marks(marked, slice(int(low), int(high)), end - start, of_video=True)
            marks["seconds"] = rounded(end - start)
            span = {"start": rounded(offset + start), "end": rounded(offset + end)}
            rows.append({**span, **marks})
    return rows


def _series_marks(marked: Marked, part: slice, seconds: float, *, of_video: bool) -> Values:
    series = {
        n: marked.column(n)[part] for n in ("sharpness", "exposure", "clipped", "dark", "change")
    }
    black = series["dark"] >= BLACK_SHARE
    sharp = series["sharpness"]
    lit = sharp[~black & ~np.isnan(sharp)]
    sharpness = float(np.median(lit)) if len(lit) else None
    marks: Values = {
        "sharpness": None if sharpness is None else rounded(sharpness),
        "blurred": None if sharpness is None else int(sharpness < BLURRED),
        "exposure": rounded(float(series["exposure"].mean())),
        "clipped": rounded(float(series["clipped"].mean())),
        "black": rounded(float(black.mean())),
    }
    if of_video:
        still = (series["change"] <= STILL) & ~black
        frozen = _stretches(still)
        marks |= {
            "motion": _motion(marked, part),
            "black_seconds": rounded(min(seconds, float(black.sum()) * STEP_SECONDS)),
            "frozen": rounded(float(frozen.mean())),
            "frozen_seconds": rounded(min(seconds, float(frozen.sum()) * STEP_SECONDS)),
        }
    return {name: marks.get(name) for name, mark in MARKS.items() if mark.of_chunks}


def _stretches(still: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which samples lie in a stretch of at least two that do not change. A single one is too
    short to be more than a slow moment."""
    padded = np.pad(still, 1)
    long = still & (padded[:-2] | padded[2:])
    # The sample before a stretch shows the same frame.
    stretches: NDArray[np.bool_] = long | np.append(long[1:], False)
    return stretches


def _motion(marked: Marked, part: slice) -> float | None:
    """Return the mean motion. A sample that differs alone shows a cut, and counts as those
    beside it."""
    around = np.pad(marked.column("motion"), 1, constant_values=np.nan)
    values = np.fmin(around[1:-1], np.fmax(around[:-2], around[2:]))[part]
    return None if np.isnan(values).all() else rounded(float(np.nanmean(values)))


def rounded(value: float) -> float:
    """Return a mark with its decimals."""
    return round(value, DIGITS)


@dataclass(kw_only=True, slots=True)
class MarkedFiles:
    """The files of a run that have marks, in source order."""

    files: list[JobFile] = field(default_factory=list)
    rows: list[Values] = field(default_factory=list)
    """Marks of each file."""
    coloured: list[bool] = field(default_factory=list)
    """Whether each file has colours."""
    chunks: list[Values] = field(default_factory=list)
    """Marks of the chunks of all videos."""

    copies: dict[str, Copies] = field(default_factory=dict)
    """Flag → which files are copies of each other."""
    choices: dict[int, str] = field(default_factory=dict)
    """Index of a file → what a person decided of it."""

    @property
    def contents(self) -> NDArray[np.int64]:
        """Return the number of the content of each file, in the order in which they come first."""
        numbers = {n: at for at, n in enumerate(dict.fromkeys(r["digest"] for r in self.rows))}
        return np.array([numbers[row["digest"]] for row in self.rows], np.int64)

    def best_first(self) -> NDArray[np.int64]:
        """Return the indexes of the files, the best first; of equal ones `a.jpg` comes before
        `a (copy).jpg`. What a person only wants to be kept, too, replaces no other file."""
        names = [(len(PurePosixPath(n).stem), n) for n in (r["media_path"] for r in self.rows)]
        ranks = {None: 0, BEST: 1, KEEP_TOO: -1}
        keys = [
            (ranks[self.choices.get(at)], *_quality(self.rows[at], self.coloured[at]))
            for at in range(len(names))
        ]
        order = sorted(range(len(names)), key=names.__getitem__)
        return np.array(sorted(order, key=keys.__getitem__, reverse=True), np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a person decided of a file."""

    path: str
    digest: str
    choice: Literal["best", "keep"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOutRow:
    """A file that a run left out, and why."""

    path: str
    media_path: Text
    why: Text


def choices_in(out: Path) -> dict[tuple[str, str], str]:
    """Return path and digest → what a person decided of a file. Raises EnvironmentFault."""
    if not os.path.lexists(out / CHOICES_FILE):
        return {}
    hint = "Remove that line, and choose again"
    rows = read_jsonl_file(Choice, out / CHOICES_FILE, hint)
    return {(row.path, row.digest): row.choice for row in rows}


def parse_keep(
    text: str | None, *, similar: bool = False, option: str = "--keep"
) -> Condition | None:
    """Return the condition of an option; None without one. `similar` says whether there are
    marks by vectors. Raises UsageError."""
    if text is None:
        return None
    columns = [name for name in COLUMNS if name not in KEPT]
    table = Table(columns=columns, texts=TEXTS, option=option, example=KEEP)
    condition = Condition(text, table)
    if not similar and (unknown := sorted({"similar", "similar_group"} & condition.columns)):
        raise UsageError(
            f"{option} names {unknown[0]}, which no file has without --similar",
            hint="Give --model and --similar to `penstock sift`, or leave it out",
        )
    return condition


def add_file(files: MarkedFiles, job_file: JobFile, marked: Marked, chunk: float) -> None:
    """Add a file with the marks that depend on it alone."""
    file, medium = job_file.file, job_file.medium
    names = {"media_path": utf8(file.media_path), "source": utf8(file.source)}
    own = {"path": file.place, "kind": medium.kind, "digest": medium.digest}
    row: Values = dict.fromkeys(COLUMNS)
    files.rows.append(row | names | own | medium_marks(marked))
    files.chunks += [{**names, **chunk_values} for chunk_values in chunk_marks(marked, chunk)]
    files.files.append(job_file)
    files.coloured.append(any(is_coloured(look) for look in marked.looks))


def mark_copies(files: MarkedFiles, flag: str, copies: Copies) -> None:
    """Flag the copies of a better file, and number the groups of several files: the best one and
    its direct copies, then the best one of the rest and its."""
    files.copies[flag] = copies
    best, (flags,) = stars([copies], files.best_first(), len(files.rows))
    flags[_are_of_one_file(files.rows, best)] = False
    for row, is_copy in zip(files.rows, flags.tolist(), strict=True):
        row[flag] = int(is_copy)
    if number := FLAGS[flag]:
        _number(files.rows, best.tolist(), number)


def _number(rows: Sequence[Values], best: Sequence[int], number: str) -> None:
    """Number the groups of several files. `best` has the best file of each one's group, or -1."""
    sizes, numbers = Counter(best), dict[int, int]()
    for row, of in zip(rows, best, strict=True):
        if of >= 0 and sizes[of] > 1:
            row[number] = numbers.setdefault(of, len(numbers) + 1)


def _quality(row: Values, coloured: bool) -> tuple[bool, bool, float, bool, float]:
    """Return the sort key by which the best of a group is chosen: no faults, more than black and
    white, then its resolution, then colours, then its sharpness."""
    good = not row["faults"], not row["bilevel"]
    return *good, row["width"] * row["height"], coloured, row["sharpness"] or 0.0


@dataclass(kw_only=True, slots=True)
class LeftOut:
    """What a condition leaves out."""

    why: dict[int, str] = field(default_factory=dict)
    """Index of a file → why it is left out."""
    firsts: Counter[str] = field(default_factory=Counter)
    """Part of the condition → the files for which it is the first that is not met."""
    nulls: Counter[str] = field(default_factory=Counter)
    """Mark → the files that are left out because they have none."""


def kept_of(files: MarkedFiles, condition: Condition | None) -> tuple[list[int], LeftOut]:
    """Return the indexes of the files to keep, and what is left out.

    1. A file passes if it meets the condition with the flags of copies set to 0.
    2. Groups are formed anew among the files that pass, the best first, by the flags that the
       condition names. A file whose flags meet the condition (`duplicate = 0 or exact = 0`) begins
       a group, too.
    3. A file that passes is judged by its new flags, so that it is left out as a copy only of a
       file that is kept; one that does not pass by those of all files (`duplicate = 1`).
    """
    if condition is None or not files.rows:
        return list(range(len(files.rows))), LeftOut()
    named = [flag for flag in FLAGS if flag in condition.columns]
    stored = batch_of(files.rows, TEXTS)
    alone = _with_flags(stored, {flag: 0 for flag in named})
    passes, chosen = condition.of(alone).copy(), list(files.choices)
    passes[chosen] = True
    order = files.best_first()
    copies = [files.copies[flag] for flag in named or ("duplicate",)]
    meets = _by_flags(files, condition, named, stored)
    best, flags = stars(copies, order[passes[order]], len(files.rows), meets)
    flags[:, _are_of_one_file(files.rows, best)] = False
    for at in np.flatnonzero(passes).tolist():
        files.rows[at]["kept_duplicate"] = int(flags[:, at].any())
    _number(files.rows, best.tolist(), "kept_group")
    of_all = {flag: [row[flag] for row in files.rows] for flag in named}
    judged = {
        flag: np.where(passes, is_copy, of_all[flag])
        for flag, is_copy in zip(named, flags, strict=bool(named))
    }
    batch = _with_flags(stored, judged)
    kept = condition.of(batch).copy()
    kept[chosen] = True
    parts = list(zip(condition.parts(batch), condition.parts(alone), strict=True))
    left = LeftOut()
    for at in np.flatnonzero(~kept).tolist():
        unmet = [(new, old) for new, old in parts if not new[1][at]]
        # Of a file that does not pass, a flag is no reason.
        unmet = [(new, old) for new, old in unmet if not old[1][at]] or unmet
        row, texts = files.rows[at], [text for (text, _, _), _ in unmet]
        of = files.rows[int(best[at])]["media_path"] if passes[at] else ""
        left.why[at] = "; ".join(
            f"not {text} ({f'a copy of {of}' if of else values_shown(row, text.split())})"
            for text in texts
        )
        left.firsts[texts[0]] += 1
        if all(unknown[at] for (_, _, unknown), _ in unmet):
            words = texts[0].split()
            left.nulls[next(n for n in row if row[n] is None and n in words)] += 1
    return np.flatnonzero(kept).tolist(), left


def _by_flags(
    files: MarkedFiles, condition: Condition, named: Sequence[str], stored: "RecordBatch"
) -> Callable[[int, Sequence[bool]], bool]:
    """Return the function that says whether a file meets a condition with these flags of copies.
    `stored` is the batch of all rows."""

    @cache
    def rows_that_meet(flags: tuple[bool, ...]) -> NDArray[np.bool_]:
        values = dict(zip(named, map(int, flags), strict=True))
        return condition.of(_with_flags(stored, values))

    def meets(at: int, flags: Sequence[bool]) -> bool:
        if at in files.choices or not named:
            return at in files.choices
        return bool(rows_that_meet(tuple(flags))[at])

    return meets


def _are_of_one_file(rows: Sequence[Values], best: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows name the very file that is the best of their group: a list may name one
    file twice, with two prompts, and it is no copy of itself."""
    same = [of >= 0 and row["path"] == rows[of]["path"] for row, of in zip(rows, best, strict=True)]
    return np.array(same, np.bool_)


def _with_flags(batch: "RecordBatch", flags: Mapping[str, "ArrayLike"]) -> "RecordBatch":
    """Return a batch with these flags of copies: mark → its value of each row, or of all."""
    import pyarrow as pa

    for name, values in flags.items():
        column = pa.array(np.broadcast_to(np.asarray(values, np.float64), batch.num_rows))
        batch = batch.set_column(batch.schema.get_field_index(name), name, column)
    return batch


def list_lines(files: MarkedFiles, kept: Sequence[int]) -> Iterator[dict[str, Json]]:
    """Yield the lines of a list of sources, with the prompts that files had in theirs."""
    for at in kept:
        file = files.files[at].file
        line = {n: files.rows[at][n] for n in ("media_path", "source")} | {"path": file.place}
        if file.prompts:
            line["prompts"] = dict(file.prompts)
        elif file.prompt is not None:
            line["prompt"] = file.prompt
        yield line


LISTED = ("media_path", "source", "path")
"""Columns of the list of what is kept, and of the list of what is left out."""


def write_tables(
    own: GeneratedFiles,
    out: Path,
    files: MarkedFiles,
    formats: Sequence[str],
    kept: Sequence[int],
    why: Mapping[int, str],
) -> None:
    """Write all files, each as a whole. Raises EnvironmentFault."""
    left = [
        {n: files.rows[at][n] for n in LISTED}
        | {"path": files.files[at].file.place, "why": why[at]}
        for at in why
    ]
    listed = dict.fromkeys(LISTED, "text")
    for name, rows, kinds in (
        (MARKS_FILE, files.rows, kinds_of(COLUMNS)),
        (CHUNKS_FILE, files.chunks, kinds_of(files.chunks[0] if files.chunks else LISTED[:2])),
        (LEFT_OUT_FILE, left, {**listed, "why": "text"}),
        (KEPT_FILE, list(list_lines(files, kept)), listed),
    ):
        for form, write in TABLES.items():
            if form in formats:
                path = (out / name).with_suffix(f".{form}")
                own.renew(path, partial(write, rows=rows, kinds=kinds))
        lines = (json_text(row) + "\n" for row in rows)
        own.renew(out / name, partial(write_text, pieces=lines))

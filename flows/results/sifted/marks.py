"""The marks of a medium and of a chunk: their names, ranges and values."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.sift.measures import BLACK_SHARE
from stages.sift.record import STEP_SECONDS, Marked

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
    "exact": Mark(range="0, 1", text="its bytes equal those of an earlier file"),
    "duplicate": Mark(range="0, 1", text="a copy, and another one is better"),
    "group": Mark(range="from 1", text="number of its group of copies"),
    "similar": Mark(range="0, 1", text="near a better one by vectors (--similar)"),
    "similar_group": Mark(range="from 1", text="number of its group by vectors"),
}
"""Name → mark, in the order of the tables; heads follow."""
Values = dict[str, Any]


WHOLE = ("0, 1", "count", "from 1", "pixels")
"""Ranges of whole numbers."""


def kinds_of(columns: Iterable[str]) -> dict[str, str]:
    """Return the type of each column, as the writers of tables know it."""
    counts = {name for name, mark in MARKS.items() if mark.range in WHOLE}
    return {n: "text" if n in TEXTS else "count" if n in counts else "number" for n in columns}


def columns_of(heads: Sequence[str] = ()) -> list[str]:
    """Return the columns of the table of media."""
    return [*TEXTS, *MARKS, *heads]


def medium_marks(found: Marked) -> Values:
    """Return the marks of one medium that depend on it alone."""
    meta = found.meta
    top, bottom, left, right = meta["bars"]
    of_video = meta["kind"] == "video"
    return {
        **_series_marks(found, slice(None), meta["seconds"], of_video=of_video),
        "letterbox": rounded(1 - (1 - top - bottom) * (1 - left - right)),
        "width": meta["width"],
        "height": meta["height"],
        "aspect": rounded(meta["width"] / meta["height"]),
        "seconds": meta["seconds"] if of_video else None,
        "bilevel": int(meta.get("bilevel", False)),
        "faults": meta["faults"],
    }


def chunk_marks(found: Marked, seconds: float) -> list[Values]:
    """Return the marks of each chunk of a video; of an image there are none."""
    if found.meta["kind"] != "video":
        return []
    times, offset, rows = found.column("time"), found.meta["start"], []
    # As `penstock caption` cuts: a short rest belongs to the chunk before it.
    for at in range(max(1, math.ceil(round(found.meta["seconds"] / seconds, 6)))):
        start, end = at * seconds, min((at + 1) * seconds, found.meta["seconds"])
        low, high = np.searchsorted(times, (start, end))
        if low < high:
            marks = _series_marks(found, slice(int(low), int(high)), end - start, of_video=True)
            marks["seconds"] = rounded(end - start)
            span = {"start": rounded(offset + start), "end": rounded(offset + end)}
            rows.append({**span, **marks})
    return rows


def _series_marks(found: Marked, part: slice, seconds: float, *, of_video: bool) -> Values:
    """Return the marks of these samples."""
    series = {
        n: found.column(n)[part] for n in ("sharpness", "exposure", "clipped", "dark", "change")
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
            "motion": _motion(found, part),
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
    found: NDArray[np.bool_] = long | np.append(long[1:], False)
    return found


def _motion(found: Marked, part: slice) -> float | None:
    """Return the mean motion. A sample that differs alone shows a cut, and counts as those
    beside it."""
    around = np.pad(found.column("motion"), 1, constant_values=np.nan)
    values = np.fmin(around[1:-1], np.fmax(around[:-2], around[2:]))[part]
    return None if np.isnan(values).all() else rounded(float(np.nanmean(values)))


def rounded(value: float) -> float:
    """Return a mark with its decimals."""
    return round(value, DIGITS)

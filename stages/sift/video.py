"""Samples a video every half second, in parts that are stored one by one."""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.frames.frame_converter import FrameConverter, shown_size
from stages.frames.opening import no_frames
from stages.frames.reader import Reader
from stages.sift.measures import (
    BLACK_SHARE,
    EDGE,
    SHARP_EDGE,
    Grey,
    bars_of,
    look_of,
    row_of,
    sharpness,
    small_size,
    thumb_of,
)
from stages.sift.record import FRACTIONS, NO_POINTS, SERIES, STEP_SECONDS, Look, Marked

SHARP_EVERY = 8
"""Sharpness is measured on one of so many samples: it takes longer than all other marks."""
PART = 600
"""Samples of a part: five minutes, which is the most that a killed run loses of a video."""


class SampledVideo:
    """An open video, and the times of its samples."""

    def __init__(self, path: Path, *, threads: int) -> None:
        """Open a video. Raises MediaError."""
        self._reader = Reader(path, threads=threads)
        self._timeline = timeline = self._reader.timeline
        self._shown = shown_size(
            self._reader.first_frame, self._reader.decoder.stream.sample_aspect_ratio
        )
        frame, (height, width) = self._reader.first_frame, self._shown
        sizes = (small_size(width, height, edge)[::-1] for edge in (EDGE, SHARP_EDGE))
        self._small, self._sharp = (FrameConverter(frame, size, grey=True) for size in sizes)
        self._colours = FrameConverter(frame, self._small.size)
        wanted = np.arange(0, max(timeline.duration, 1e-9), STEP_SECONDS)
        ticks = timeline.start + np.rint(wanted / float(timeline.time_base)).astype(np.int64)
        at = np.minimum(np.searchsorted(timeline.pts, ticks), len(timeline.pts) - 1)
        self._ticks = np.unique(timeline.pts[at])
        count = len(self._ticks)
        self._looks_at = [round(share * (count - 1)) for share in FRACTIONS]
        self.parts = -(-count // PART)
        """Number of its parts."""

    def __enter__(self) -> "SampledVideo":
        return self

    def __exit__(self, *exc: object) -> None:
        self._reader.close()

    def meta(self) -> dict[str, Any]:
        """Return what is known of the whole video."""
        height, width = self._shown
        return {
            "kind": "video",
            "width": width,
            "height": height,
            "start": self._timeline.offset,
            "seconds": round(self._timeline.duration, 3),
            "faults": len(self._timeline.all_warnings()),
        }

    def sampled(self, parts: Sequence[int]) -> Iterator[tuple[int, Marked]]:
        """Yield these parts, ascending. Raises MediaError if no sample can be decoded."""
        # Each part needs the sample before it, to see what changed since.
        wanted = [range(max(0, at * PART - 1), (at + 1) * PART) for at in parts]
        numbers = sorted({n for each in wanted for n in each if n < len(self._ticks)})
        self._reader.request(array("q", (int(self._ticks[n]) for n in numbers)))
        before: tuple[int, float, Grey] | None = None
        for part in parts:
            found = _Part(self._small.size)
            for number in range(max(0, part * PART - 1), min((part + 1) * PART, len(self._ticks))):
                if before is not None and before[0] == number:
                    continue  # the last sample of the part before
                before = self._take(found, number, before, own=number >= part * PART)
            yield part, found.marked()

    def _take(
        self, part: "_Part", number: int, before: tuple[int, float, Grey] | None, *, own: bool
    ) -> tuple[int, float, Grey] | None:
        """Add a sample to its part if it is its `own`, and return it for the next one."""
        tick = int(self._ticks[number])
        first = int(self._ticks[number - 1]) + 1 if number else self._timeline.start
        last = number + 1 == len(self._ticks)
        beyond = int(self._timeline.pts[-1]) + 1 if last else int(self._ticks[number + 1])
        found = self._reader.at(tick, first, beyond)
        if found is None:
            part.faults += own
            return before
        part.faults += own * (found[0] != tick or found[1].is_corrupt or self._reader.passed_over)
        self._reader.passed_over = False
        time = self._timeline.since_first(found[0])
        grey = self._small.convert(found[1])
        thumb = thumb_of(grey)
        if own:
            row = row_of(time, grey, thumb, None if before is None else before[1:])
            looks = self._looks_at.count(number)
            sharp = self._sharp.convert(found[1]) if looks or number % SHARP_EVERY == 0 else None
            if sharp is not None and number % SHARP_EVERY == 0:
                row[SERIES.index("sharpness")] = sharpness(sharp)
            look = []
            if sharp is not None and looks:
                look = [look_of(grey, sharp, Image.fromarray(self._colours.convert(found[1])))]
            part.add(row, grey, look * looks)
        return number, time, thumb


class _Part:
    """The samples of one part so far."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.faults = 0
        self._rows: list[list[float]] = []
        self._looks: list[Look] = []
        self._brightest: NDArray[np.uint8] = np.zeros(size, np.uint8)

    def add(self, row: list[float], grey: Grey, looks: list[Look]) -> None:
        self._rows.append(row)
        self._looks += looks
        if row[SERIES.index("dark")] < BLACK_SHARE:
            np.maximum(self._brightest, grey, out=self._brightest)

    def marked(self) -> Marked:
        return Marked(
            meta={"faults": self.faults},
            looks=tuple(self._looks),
            brightest=self._brightest,
            series=np.array(self._rows, np.float32).reshape(-1, len(SERIES)),
        )


def joined(parts: Sequence[Marked], meta: dict[str, Any], path: Path) -> Marked:
    """Return the parts of a video as one. Raises MediaError if no sample could be decoded."""
    if not any(len(part.series) for part in parts):
        raise no_frames(path)
    faults = meta["faults"] + sum(part.meta["faults"] for part in parts)
    brightest = np.max([part.brightest for part in parts], axis=0)
    return Marked(
        meta={**meta, "faults": faults, "bars": bars_of(brightest)},
        looks=tuple(look for part in parts for look in part.looks),
        brightest=NO_POINTS,
        series=np.concatenate([part.series for part in parts]),
    )

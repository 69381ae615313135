"""Times of captions by the clock that a file states: fields of rows, and cues of subtitles."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from artifacts.schema import ChunkIndex, MediaIndex
from artifacts.texts.captions import Caption
from artifacts.timecodes import DAY_SECONDS, START, TIMECODE, WALL
from flows.core.job.prepare import Job
from flows.core.ledger.tasks import Medium

CLOCK_NAMES = {TIMECODE: "timecode", WALL: "time of creation"}
CUES = {"vtt", "srt"}
"""Formats whose times follow the clock."""


def timecode_of(index: MediaIndex, chunk: ChunkIndex) -> str:
    """Return the timecode of a chunk's start; empty: the file states none."""
    timecode = index.clock.timecode_after(chunk.start - index.start)
    return "" if timecode is None else timecode.label


def recorded_of(index: MediaIndex, chunk: ChunkIndex) -> str:
    """Return when a chunk's start was recorded, in ISO 8601; empty: the file does not say."""
    recorded = index.clock.recorded_after(chunk.start - index.start)
    return "" if recorded is None else recorded.isoformat(timespec="milliseconds")


def without_clock(job: Job, index: MediaIndex) -> Iterator[str]:
    """Yield a warning if cues of a video are to follow a clock that its file does not state."""
    clock, formats = job.config.groups.outputs.clock, job.config.groups.outputs.format
    is_wanted = clock != START and index.kind == "video" and not CUES.isdisjoint(formats)
    if is_wanted and index.clock.times(clock, (0, 0)) is None:
        yield f"the file states no {CLOCK_NAMES[clock]}: cues count from its start"


def on_clock(job: Job, medium: Medium, captions: Sequence[Caption]) -> Sequence[Caption]:
    """Return captions with the times of cues: by the clock of the run, if the file states it."""
    clock, index = job.config.groups.outputs.clock, job.ledger.media_index(medium)
    if clock == START or index is None or index.clock.times(clock, (0, 0)) is None:
        return captions
    timed, day = list[Caption](), 0.0
    for caption in captions:
        span = (caption.start - index.start, caption.end - index.start)
        start, end = index.clock.times(clock, span) or span
        if timed and start + day < timed[-1].start:  # past midnight: cues do not go back
            day += DAY_SECONDS
        timed.append(replace(caption, start=start + day, end=end + day))
    return timed

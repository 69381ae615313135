"""Which frames make which chunk, and which packets are left out on the way to them, on timelines
written down by hand."""

from array import array
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from artifacts.schema import Sampling
from stages.frames.timeline import END, ChunkPlan, Keyframes, SeekPlan, Timeline, plan_chunks


def cut(ticks: Sequence[int], *, last: float = 1, **sampling: float) -> list[ChunkPlan]:
    """The chunks of a file with ten ticks a second, whose last frame stands for so many."""
    base, pts = Fraction(1, 10), np.array(ticks, dtype=np.int64)
    timeline = Timeline(pts=pts, time_base=base, last_ticks=int(last), keyframes=None)
    wishes: dict[str, float] = {"chunk_seconds": 3, "max_frames": 100, **sampling}
    return plan_chunks(timeline, Sampling(**wishes))  # type: ignore[arg-type]


TICKS: dict[str, tuple[list[int], dict[str, float], list[list[int]]]] = {
    "a target takes the frame on display then": (
        [0, 4, 9, 11, 20, 29], {"fps": 1}, [[0, 9, 20]],
    ),
    "evenly spaced targets start with the chunk": (
        [*range(60)], {"frames": 3}, [[0, 10, 20], [30, 40, 50]],
    ),
    "a frame belongs to the chunk in which it begins": (
        [0, 28, 32, 50], {"fps": 1, "last": 10}, [[0], [32, 50]],
    ),
    "time 0 is the first frame": (
        [*range(1000, 1060)], {"fps": 1}, [[1000, 1010, 1020], [1030, 1040, 1050]],
    ),
    "a frame on display at several targets is taken once": (
        [0, 25], {"fps": 2, "last": 5}, [[0, 25]],
    ),
    "a chunk under a standing picture shows that picture": (
        [0, 1, 100], {"fps": 1, "last": 10}, [[0, 1], [1], [1], [1, 100]],
    ),
    "a picture that stays for half a second belongs to the next chunk, too": (
        [0, 20, 35, 45], {"fps": 1, "last": 10}, [[0, 20], [20, 35, 45]],
    ),
    "one that goes sooner does not": (
        [0, 20, 34, 45], {"fps": 1, "last": 10}, [[0, 20], [34, 45]],
    ),
    "too few frames are raised to the minimum": (
        [*range(30)], {"fps": 0.1, "min_frames": 4}, [[0, 7, 15, 22]],
    ),
    "the minimum cannot be had from a shorter file": (
        [0, 5], {"fps": 1, "min_frames": 8}, [[0, 5]],
    ),
    "too many frames are thinned evenly": (
        [*range(30)], {"fps": 10, "max_frames": 4}, [[0, 7, 15, 22]],
    ),
    "a single frame is the middle one": ([*range(75)], {"frames": 1}, [[15], [45], [67]]),
    "chunks shorter than a frame still each show something": (
        [0, 10, 20], {"chunk_seconds": 0.25, "fps": 1, "last": 10},
        [[0]] * 4 + [[10]] * 4 + [[20]] * 4,
    ),
}  # fmt: skip
"""Ticks of the file's frames, what is asked for, ticks of the frames of each chunk."""


@pytest.mark.parametrize("name", TICKS)
def test_chunks_hold_these_frames(name: str) -> None:
    ticks, wishes, found = TICKS[name]
    assert [list(plan.ticks) for plan in cut(ticks, **wishes)] == found


@pytest.mark.parametrize(
    ("ticks", "spans"),
    [
        (range(75), [(0, 3), (3, 6), (6, 7.5)]),
        (range(1000, 1060), [(0, 3), (3, 6)]),
        (range(61), [(0, 3), (3, 6.1)]),  # a last sliver joins the chunk before
        (range(31), [(0, 3.1)]),
        (range(65), [(0, 3), (3, 6), (6, 6.5)]),
        ([7], [(0, 0.1)]),
    ],
)
def test_chunks_cover_the_whole_length_without_gap_or_overlap(
    ticks: Sequence[int], spans: list[tuple[float, float]]
) -> None:
    plans = cut(ticks, fps=1)
    assert [(plan.start, plan.end) for plan in plans] == spans
    assert [plan.index for plan in plans] == list(range(len(spans)))


@pytest.mark.parametrize("fps", [1, 2, 3, 7, 29.97, 30])
def test_no_target_is_missed_by_rounding(fps: float) -> None:
    base, pts = Fraction(1, 30000), np.arange(0, 1001 * 3000, 1001, dtype=np.int64)
    ntsc = Timeline(pts=pts, time_base=base, last_ticks=1001, keyframes=None)
    plans = plan_chunks(ntsc, Sampling(chunk_seconds=10, fps=fps, max_frames=1000))
    for plan in plans[:-1]:
        # One of the ntsc frames at either border may be shown in the chunk before.
        assert abs(len(plan.ticks) - 10 * fps) <= 2
    everything = [ticks for plan in plans for ticks in plan.ticks]
    assert everything == sorted(set(everything))


@pytest.mark.parametrize(
    ("rate", "fps"),
    [(30, 30), (30, 24), (30, 7.5), (24, 24), (24, 3), (Fraction(24000, 1001), 23.976)],
)
def test_a_clock_of_milliseconds_changes_no_frame(rate: Fraction, fps: float) -> None:
    chosen = []
    for clock in (24000, 1000):
        pts = np.array([round(n * clock / rate) for n in range(300)], dtype=np.int64)
        last = round(clock / rate)
        timeline = Timeline(pts=pts, time_base=Fraction(1, clock), last_ticks=last, keyframes=None)
        plans = plan_chunks(timeline, Sampling(chunk_seconds=20, fps=fps, max_frames=300))
        chosen.append(np.searchsorted(pts, plans[0].ticks).tolist())
    assert chosen[0] == chosen[1]


TENS = array("q", range(0, 100, 10))
GROUPS_OF_TEN = Keyframes(pts=TENS, dts=TENS, ordinals=TENS)


@pytest.mark.parametrize(
    ("expected", "sent", "threads", "decoded"),
    [
        ([2, 51], (), 1, [0, 1, 2, 50, 51]),  # groups without a wanted frame are left out
        ([0, 5, 13], (), 1, [*range(6), *range(10, 14)]),  # and what comes behind the last wanted
        ([7], (), 1, [*range(8)]),
        ([2, 2, 51], (), 1, [0, 1, 2, 50, 51]),  # a slide that two chunks show is decoded once
        ([], (), 1, []),
        ([7, 12], (), 2, [*range(8), *range(10, 13)]),
        ([7, 12], (), 3, [*range(13)]),  # a leap too short to pay is not made
        ([1, 20], (0, 1, 2), 1, [20]),  # what was decoded already counts
    ],
)
def test_no_more_packets_are_decoded_than_wanted_frames_need(
    expected: list[int], sent: tuple[int, ...], threads: int, decoded: list[int]
) -> None:
    route = SeekPlan(array("q", expected), GROUPS_OF_TEN, sent=sent, threads=threads)
    found, at = [], len(sent)
    while at < 100:
        leap = route.seek_target(at)
        if leap == END:
            break
        if leap is not None:
            at = GROUPS_OF_TEN.ordinals[leap]
        route.needs(at)
        found.append(at)
        at += 1
    assert found == decoded


def test_only_wanted_frames_are_needed() -> None:
    route = SeekPlan(array("q", [3, 4]), GROUPS_OF_TEN)
    assert [ticks for ticks in range(10) if route.needs(ticks)] == [3, 4]


def test_without_trusted_keyframes_everything_is_decoded() -> None:
    route = SeekPlan(array("q", [90]), None)
    assert [route.seek_target(at) for at in range(100)] == [None] * 100
    walking = SeekPlan(array("q", [90]), GROUPS_OF_TEN)
    walking.disable()
    assert walking.seek_target(0) is None


@pytest.mark.parametrize(
    ("announced", "duration"), [(95.04, 95.04), (184.8, 185), (94.0, 185), (None, 185), (200, 185)]
)
def test_the_last_slide_stands_no_longer_than_the_file_says(
    announced: float | None, duration: float
) -> None:
    """Of a slide show with B-frames by FFmpeg, the packet of the last frame, at 95 s, states the 90
    seconds of a decoding step; its header is right. One that ends before that frame is wrong."""
    timeline = Timeline(
        pts=np.array([0, 500, 9500]),
        time_base=Fraction(1, 100),
        last_ticks=9000,
        keyframes=None,
        announced_seconds=announced,
    )
    found = timeline.ending_as_announced()
    assert found.duration == pytest.approx(duration)
    assert found.last_ticks == pytest.approx(100 * (duration - 95))

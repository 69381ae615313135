"""Which frames make which chunk, on timelines written down by hand."""

from fractions import Fraction

import numpy as np
import pytest

from artifacts.schema import Sampling
from stages.frames.plan import ChunkPlan, plan_chunks
from stages.frames.timeline import Timeline


def timeline(ticks: list[int], rate: int = 10, last: int = 1) -> Timeline:
    return Timeline(
        pts=np.array(ticks, dtype=np.int64),
        time_base=Fraction(1, rate),
        last_ticks=last,
        keyframes=None,
    )


def cut(ticks: list[int], *, last: int = 1, **sampling: float) -> list[ChunkPlan]:
    wishes: dict[str, float] = {"chunk_seconds": 3, "max_frames": 100, **sampling}
    return plan_chunks(timeline(ticks, last=last), Sampling(**wishes))  # type: ignore[arg-type]


def test_chunks_cover_the_whole_length_without_gap_or_overlap() -> None:
    plans = cut(list(range(75)), fps=1)
    assert [(p.start, p.end) for p in plans] == [(0, 3), (3, 6), (6, 7.5)]
    assert [p.index for p in plans] == [0, 1, 2]


def test_a_target_takes_the_frame_on_display_then() -> None:
    plans = cut([0, 4, 9, 11, 20, 29], fps=1, last=1)
    assert list(plans[0].ticks) == [0, 9, 20]


def test_evenly_spaced_targets_start_with_the_chunk() -> None:
    plans = cut(list(range(60)), frames=3)
    assert [list(p.ticks) for p in plans] == [[0, 10, 20], [30, 40, 50]]


def test_a_frame_belongs_to_the_chunk_in_which_it_begins() -> None:
    plans = cut([0, 28, 32, 50], fps=1, last=10)
    assert list(plans[1].ticks) == [32, 50]


def test_time_0_is_the_first_frame() -> None:
    plans = cut(list(range(1000, 1060)), fps=1)
    assert list(plans[1].ticks) == [1030, 1040, 1050]
    assert plans[1].start == 3


def test_a_frame_on_display_at_several_targets_is_taken_once() -> None:
    assert [list(p.ticks) for p in cut([0, 25], fps=2, last=5)] == [[0, 25]]


def test_a_chunk_under_a_standing_picture_shows_that_picture() -> None:
    plans = cut([0, 1, 100], fps=1, last=10)
    assert [list(p.ticks) for p in plans] == [[0, 1], [1], [1], [100]]
    assert plans[-1].end == 11


def test_a_last_sliver_joins_the_chunk_before() -> None:
    plans = cut(list(range(61)), fps=1)
    assert [(p.start, p.end) for p in plans] == [(0, 3), (3, 6.1)]


def test_a_short_last_piece_with_frames_of_its_own_is_a_chunk() -> None:
    plans = cut(list(range(65)), fps=1)
    assert (plans[-1].start, plans[-1].end, list(plans[-1].ticks)) == (6, 6.5, [60])


def test_too_few_frames_are_raised_to_the_minimum() -> None:
    assert list(cut(list(range(30)), fps=0.1, min_frames=4)[0].ticks) == [0, 7, 15, 22]


def test_the_minimum_cannot_be_had_from_a_shorter_file() -> None:
    assert list(cut([0, 5], fps=1, min_frames=8)[0].ticks) == [0, 5]


def test_too_many_frames_are_thinned_evenly() -> None:
    assert list(cut(list(range(30)), fps=10, max_frames=4)[0].ticks) == [0, 7, 15, 22]


def test_a_single_frame_is_the_middle_one() -> None:
    plans = cut(list(range(75)), frames=1)
    assert [list(p.ticks) for p in plans] == [[15], [45], [67]]


def test_one_frame_makes_one_chunk() -> None:
    plans = cut([7], fps=1)
    assert [(p.start, p.end, list(p.ticks)) for p in plans] == [(0, 0.1, [7])]


@pytest.mark.parametrize("fps", [1, 2, 3, 7, 29.97, 30])
def test_no_target_is_missed_by_rounding(fps: float) -> None:
    ntsc = Timeline(
        pts=np.arange(0, 1001 * 3000, 1001, dtype=np.int64),
        time_base=Fraction(1, 30000),
        last_ticks=1001,
        keyframes=None,
    )
    plans = plan_chunks(ntsc, Sampling(chunk_seconds=10, fps=fps, max_frames=1000))
    for plan in plans[:-1]:
        # One of the ntsc frames at either border may be shown in the chunk before.
        assert abs(len(plan.ticks) - 10 * fps) <= 2
    everything = [ticks for plan in plans for ticks in plan.ticks]
    assert everything == sorted(set(everything))


def test_chunks_shorter_than_a_frame_still_each_show_something() -> None:
    plans = cut([0, 10, 20], chunk_seconds=0.25, fps=1, last=10)
    assert [list(p.ticks) for p in plans] == [[0]] * 4 + [[10]] * 4 + [[20]] * 4


def test_frames_from_the_first_to_the_last_are_spread_as_linspace_does() -> None:
    plans = cut(list(range(75)), fps=1, last_frame=True)
    assert [list(p.ticks) for p in plans] == [[0, 14, 29], [30, 44, 59], [60, 74]]
    (whole,) = cut(list(range(75)), chunk_seconds=30, frames=8, last_frame=True)
    assert list(whole.ticks) == [0, 11, 21, 32, 42, 53, 63, 74]


def test_the_last_frame_comes_with_bounds_and_gaps_too() -> None:
    (few,) = cut(list(range(30)), fps=10, max_frames=4, last_frame=True)
    assert list(few.ticks) == [0, 10, 19, 29]
    (least,) = cut(list(range(30)), fps=0.1, min_frames=4, last_frame=True)
    assert list(least.ticks) == [0, 10, 19, 29]
    (all_of,) = cut([0, 3, 29], fps=2, last_frame=True)
    assert list(all_of.ticks) == [0, 3, 29]
    (middle,) = cut(list(range(30)), frames=1, last_frame=True)
    assert list(middle.ticks) == [15]

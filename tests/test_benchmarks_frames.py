"""The benchmark of the frames stage says "exact" of the very frames asked for and of no others."""

from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from artifacts.schema import Sampling
from benchmarks._frame_readers import Case, ours
from benchmarks.frames import SAME, apart, case_of, verdict
from tests.support.media import plain_frames, rgb, write_video

TWICE_A_SECOND = Sampling(chunk_seconds=30, fps=2, max_frames=1000)


def ripple(index: int, height: int, width: int) -> NDArray[np.uint8]:
    """A quiet scene: neighbouring pictures differ by less than two conversions to RGB may."""
    rows, columns = np.mgrid[:height, :width]
    shade = 128 + 60 * np.sin((columns + rows + index) / 20)
    return np.repeat(shade[..., None], 3, axis=2).astype(np.uint8)


@pytest.fixture
def quiet(tmp_path: Path) -> Path:
    options = {"preset": "ultrafast", "crf": "1"}
    return write_video(tmp_path / "quiet.mp4", ticks=range(119), options=options, draw=ripple)


def taken(case: Case, by: int) -> NDArray[np.uint8]:
    """The frames of a case, each so many frames late."""
    frames: list[VideoFrame] = list(plain_frames(case.path))
    return np.stack([rgb(frames[at + by]) for at in case.positions])


def test_what_this_program_gives_is_exact(quiet: Path) -> None:
    case = case_of("", quiet, TWICE_A_SECOND)
    assert case.positions == [15 * at for at in range(8)]
    assert verdict(case, ours(case)) == "exact"
    assert verdict(case, taken(case, 0)) == "exact"


@pytest.mark.parametrize("late", [1, 2])
def test_other_frames_are_not_exact(quiet: Path, late: int) -> None:
    case = case_of("", quiet, TWICE_A_SECOND)
    assert max(apart(*pair) for pair in zip(taken(case, late), case.wanted, strict=True)) < SAME
    assert verdict(case, taken(case, late)) == "NOT exact: 8 of 8 are others"
    assert verdict(case, taken(case, 0)[1:]).startswith("NOT exact")


def test_another_conversion_to_rgb_is_exact_and_a_neighbour_in_it_is_not(quiet: Path) -> None:
    case = case_of("", quiet, TWICE_A_SECOND)
    for late, said in ((0, "exact"), (1, "NOT exact: 8 of 8 are others")):
        other = (taken(case, late).astype(np.float32) * 0.99).astype(np.uint8)
        assert verdict(case, other) == said

"""Frames have the colours of FFmpeg's accurate conversion: at their own size its bytes, made
smaller nearly what Pillow makes of it."""

import shutil
from pathlib import Path

import pytest

from benchmarks.colours import GOAL, MADE, compared, made

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.name: path for path in made(tmp_path_factory.mktemp("clips"))}


@pytest.mark.parametrize("name", MADE)
def test_frames_are_those_of_an_accurate_conversion(clips: dict[str, Path], name: str) -> None:
    for size, found in compared(clips[name]):
        before, now = found["packed"], found["run"]
        if "own" in size:
            assert (now.mean, now.largest) == (0.0, 0), size
        else:
            assert now.mean <= min(GOAL, before.mean + 0.005), (size, now.mean, now.largest)

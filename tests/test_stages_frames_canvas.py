"""Pictures come out as a player shows them: turned, mirrored, stretched, of the size asked for."""

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from artifacts.schema import FrameFit, Sampling
from stages.frames.video import Chunk, Video
from tests.support.media import decode_plainly, digest_of_pixels, picture, write_video

EVERY_SECOND = Sampling(chunk_seconds=2, fps=1, max_frames=32)


def cut(path: Path, fit: FrameFit | None = None) -> list[Chunk]:
    with Video(path) as video:
        return list(video.chunks(video.plan(EVERY_SECOND), fit or FrameFit()))


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_is_applied(tmp_path: Path, rotation: int, turns: int) -> None:
    path = write_video(tmp_path / "turned.mp4", rotation=rotation)
    (chunk,) = cut(path)
    upright = np.rot90(picture(0), turns)
    assert chunk.pixels.shape[1:] == upright.shape
    assert np.abs(chunk.pixels[0].astype(int) - upright).mean() < 12
    assert digest_of_pixels(chunk.pixels[0]) == decode_plainly(path)[0].digest


MIRRORED = {
    (-1, 0, 0, 1): picture(0)[:, ::-1],
    (1, 0, 0, -1): picture(0)[::-1],
    (0, 1, 1, 0): picture(0).swapaxes(0, 1),
    (0, -1, -1, 0): picture(0).swapaxes(0, 1)[::-1, ::-1],
}
"""What a picture looks like by where a file asks for its pixels."""


@pytest.mark.parametrize("shown", MIRRORED)
def test_mirroring_is_applied(tmp_path: Path, shown: tuple[int, int, int, int]) -> None:
    path = write_video(tmp_path / "mirrored.mp4", shown=shown)
    (chunk,) = cut(path)
    upright = MIRRORED[shown]
    assert chunk.pixels.shape[1:] == upright.shape
    assert np.abs(chunk.pixels[0].astype(int) - upright).mean() < 12
    if shutil.which("ffmpeg"):
        command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-frames:v", "1"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        data = subprocess.run(command, check=True, capture_output=True).stdout
        played = np.frombuffer(data, dtype=np.uint8).reshape(upright.shape)
        assert np.abs(chunk.pixels[0].astype(int) - played).mean() < 4


def test_frames_come_out_at_the_size_asked_for(tmp_path: Path) -> None:
    path = write_video(tmp_path / "odd.mp4", size=(54, 96), rotation=90)
    (chunk,) = cut(path, FrameFit(long_edges=((1.0, 48),)))
    assert chunk.pixels.shape == (1, 48, 27, 3)
    with Video(path) as video:
        assert (video.height, video.width) == (96, 54)


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    path = write_video(tmp_path / "wide.mp4", size=(48, 64), pixel_aspect=Fraction(3, 2))
    (chunk,) = cut(path)
    assert chunk.pixels.shape == (1, 48, 96, 3)


def test_full_and_limited_range_come_out_alike(tmp_path: Path) -> None:
    (limited,) = cut(write_video(tmp_path / "limited.mp4"))
    (full,) = cut(write_video(tmp_path / "full.avi", codec="mjpeg", options={"q": "1"}))
    assert np.abs(limited.pixels[0].astype(int) - full.pixels[0]).mean() < 12


def test_a_colour_matrix_that_cannot_be_undone_ends_nothing(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4", options={"preset": "ultrafast", "x264-params": "colormatrix=YCgCo"}
    )
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == 8
    assert cut(path)[0].pixels.shape == (1, 48, 64, 3)

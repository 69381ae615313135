"""Frames have the colours of FFmpeg's accurate conversion: at their own size its bytes, made
smaller nearly what Pillow makes of it."""

import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stages.frames.frame_converter import FrameConverter

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")

MADE = {
    "yuv422p.mkv": ("-pix_fmt", "yuv422p", "-c:v", "ffv1"),
    "yuv444p.mkv": ("-pix_fmt", "yuv444p", "-c:v", "ffv1"),
    "yuv420p10.mkv": ("-pix_fmt", "yuv420p10le", "-c:v", "ffv1"),
    "yuv411p.mkv": ("-pix_fmt", "yuv411p", "-c:v", "ffv1"),
    "full-range.mp4": ("-pix_fmt", "yuvj420p", "-c:v", "libx264", "-crf", "4"),
    "rgb.mkv": ("-pix_fmt", "bgr0", "-c:v", "ffv1"),
    "grey.mkv": ("-pix_fmt", "gray", "-c:v", "ffv1"),
    "odd.mkv": ("-vf", "crop=639:359", "-pix_fmt", "yuv420p", "-c:v", "ffv1"),
}
"""Name of a clip → how ffmpeg writes it."""
SIDES = (128, 384, 385)
"""Longer sides of smaller frames."""
GOAL = 1.0
"""Largest mean difference of smaller frames, in levels of 255."""


def accurate(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    """Return all frames as the `ffmpeg` program converts them at full size."""
    flags = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
    scale = f"scale={width}:{height}:flags={flags}"
    if path.suffix == ".mp4":  # FFmpeg 5 ignores that the file states the left, not the centre
        scale += ":in_h_chr_pos=0:in_v_chr_pos=128"
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vf", scale, "-fps_mode", "passthrough"]
    done = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
    )
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)


@pytest.mark.in_turn
@pytest.mark.parametrize("name", MADE)
def test_frames_are_those_of_an_accurate_conversion(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    source = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=d=2:s=640x360:r=1"]
    subprocess.run([*source, *MADE[name], str(path)], check=True)
    with av.open(str(path)) as media:
        frames = list(media.decode(media.streams.video[0]))
    width, height = frames[0].width, frames[0].height
    whole = accurate(path, width, height)
    assert len(frames) == len(whole) == 2
    for frame, expected in zip(frames, whole, strict=True):
        converter = FrameConverter(frame, (height, width))
        assert np.array_equal(converter.convert(frame), expected)
        for side in SIDES:
            size = round(height * side / width), side
            made = FrameConverter(frame, size).convert(frame)
            small = Image.fromarray(expected).resize(size[::-1], Image.Resampling.BICUBIC)
            assert np.abs(made.astype(int) - np.asarray(small)).mean() <= GOAL, side

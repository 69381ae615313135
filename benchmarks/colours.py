"""How far the frames of videos are from FFmpeg's accurate conversion; prints a table.

Each frame is compared with the one that the `ffmpeg` program converts at full size, made smaller by
Pillow, also after one call of swscale to packed RGB, which gives chroma half the width of the small
frame. Means and largest differences are in levels of 255. Needs the `ffmpeg` program.

    python benchmarks/colours.py CLIP … [--made]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from benchmarks._common import cells, heads, met
from stages.frames.formats import HIGH_DYNAMIC_RANGE
from stages.frames.frame_converter import FrameConverter

EVERY, MOST = 20, 5
"""Every 20th frame counts, five of a clip."""
SIDES = (128, 384, 385, 0)
"""Longer sides of the frames; 0: that of the clip."""
GOAL = 1.0
"""Largest mean difference of smaller frames."""
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
"""Name of a test clip → how ffmpeg writes it."""
Pixels = NDArray[np.uint8]
Convert = Callable[[VideoFrame, int, int], Pixels]


def packed(frame: VideoFrame, width: int, height: int) -> Pixels:
    """Scale and convert a frame in one call."""
    image = VideoReformatter().reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        interpolation=Interpolation.BICUBIC,
        threads=1,
    )
    return np.asarray(image.to_ndarray(), np.uint8)


def product() -> Convert:
    """Return what a run does, with one converter for all frames of a size."""
    converters: dict[tuple[int, int], FrameConverter] = {}

    def convert(frame: VideoFrame, width: int, height: int) -> Pixels:
        converter = converters.setdefault((height, width), FrameConverter(frame, (height, width)))
        return converter.convert(frame)

    return convert


@dataclass(slots=True)
class Differences:
    """The differences of one way to convert, at one size."""

    means: list[float] = field(default_factory=list)
    largest: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        return float(np.mean(self.means))

    def cell(self) -> str:
        """Return mean, largest difference and milliseconds a frame as text."""
        each = 1000 * self.seconds / len(self.means)
        return f"{self.mean:.2f} ({self.largest}), {each:.1f} ms"


def frames_of(path: Path) -> list[VideoFrame]:
    """Return the frames of a clip that are compared."""
    with av.open(str(path)) as media:
        frames = islice(media.decode(media.streams.video[0]), EVERY * MOST)
        return [frame for at, frame in enumerate(frames) if at % EVERY == 5]


def accurate(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    """Return the same frames as the `ffmpeg` program converts them at full size."""
    probe = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-of", "json"]
    text = subprocess.run(
        [*probe, "-show_entries", "stream=chroma_location", str(path)],
        capture_output=True,
        check=True,
    )
    place = json.loads(text.stdout)["streams"][0].get("chroma_location")
    flags = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
    scale = f"scale={width}:{height}:flags={flags}"
    if place == "left":  # FFmpeg 5 ignores the stated location and assumes centred chroma
        scale += ":in_h_chr_pos=0:in_v_chr_pos=128"
    words = ["ffmpeg", "-v", "error", "-noautorotate", "-i", str(path), "-map", "0:v:0"]
    words += ["-frames:v", str(EVERY * MOST), "-vf", scale, "-fps_mode", "passthrough"]
    done = subprocess.run(
        [*words, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
    )
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)[5::EVERY]


def compared(path: Path) -> Iterator[tuple[str, dict[str, Differences]]]:
    """Yield the size, and the differences of each way, of a clip at each size."""
    frames = frames_of(path)
    if not frames or frames[0].rotation or frames[0].color_trc in HIGH_DYNAMIC_RANGE:
        return  # turned and mapped frames are not those that the program gives
    width, height = frames[0].width, frames[0].height
    whole = accurate(path, width, height)
    for side in SIDES:
        part = (side or max(width, height)) / max(width, height)
        if part > 1:
            continue
        size = max(2, round(width * part)), max(2, round(height * part))
        ways: dict[str, Convert] = {"packed": packed, "run": product()}
        found = {name: Differences() for name in ways}
        for frame, full in zip(frames, whole, strict=False):
            expected = Image.fromarray(full).resize(size, Image.Resampling.BICUBIC)
            for name, way in ways.items():
                began = time.perf_counter()
                pixels = way(frame, *size)
                found[name].seconds += time.perf_counter() - began
                off = np.abs(pixels.astype(int) - np.asarray(expected).astype(int))
                found[name].means.append(float(off.mean()))
                found[name].largest = max(found[name].largest, int(off.max()))
        own = "" if side else " (own)"
        yield f"{size[0]} x {size[1]}{own}", found


def made(folder: Path) -> list[Path]:
    """Write the test clips, and return them."""
    for name, options in MADE.items():
        source = ["-f", "lavfi", "-i", "testsrc=d=4:s=640x360:r=25"]
        words = ["ffmpeg", "-v", "error", "-y", *source, *options, str(folder / name)]
        subprocess.run(words, check=True)
    return [folder / name for name in MADE]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--made", action="store_true", help="also clips of other formats")
    given: Any = parser.parse_args(words)
    print(heads("clip | size | one call to packed RGB | as a run converts | goal"))
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for path in [*given.clips, *(made(Path(folder)) if given.made else ())]:
            for size, found in compared(path):
                before, now = found["packed"], found["run"]
                limit = 0.0 if "own" in size else min(GOAL, before.mean + 0.005)
                is_met = now.mean <= limit
                good &= is_met
                row = (path.name, size, before.cell(), now.cell(), met(is_met))
                print(cells(row), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

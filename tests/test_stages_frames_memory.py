"""A long video takes no more memory than a short one."""

import subprocess
import sys
from pathlib import Path

from tests.support.media import repeat_video, write_video

PEAK = """
import sys
from pathlib import Path
from artifacts.schema import FrameFit, Sampling
from stages.frames.video import Video
from stages.process.memory import Sampler

with Sampler("cpu") as memory, Video(Path(sys.argv[1]), threads=1) as video:
    plans = video.plan(Sampling(chunk_seconds=30, fps=2, max_frames=32))
    count = sum(len(chunk.index.times) for chunk in video.chunks(plans, FrameFit()))
# Not the kernel's own high-water mark, in which a child begins with its parent's.
print(len(plans), count, memory.peak_host_bytes)
"""
BYTES_A_FRAME = 90
"""FFmpeg's index of an mp4 takes 42 bytes a frame as soon as it is opened, our times of it the
rest: 16 MB for two hours at 25 frames a second. A chunk that is kept is 1.4 MB; there are 240."""


def peak(path: Path) -> tuple[int, int, int]:
    """Chunks, frames taken, and peak anonymous bytes of a process that cuts the video."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], check=True, capture_output=True, text=True
    )
    chunks, frames, peak_bytes = map(int, done.stdout.split())
    return chunks, frames, peak_bytes


def test_two_hours_take_no_more_memory_than_two_minutes_but_for_the_index(tmp_path: Path) -> None:
    minute = write_video(tmp_path / "minute.mp4", ticks=range(0, 1800, 2), size=(96, 160), gop=4)
    short = repeat_video(minute, tmp_path / "short.mp4", times=2)
    long = repeat_video(minute, tmp_path / "long.mp4", times=120)
    short_chunks, short_frames, short_peak = peak(short)
    long_chunks, long_frames, long_peak = peak(long)
    assert (short_chunks, long_chunks) == (4, 240)
    assert long_frames == short_frames * 60 == 240 * 32
    assert long_peak - short_peak < BYTES_A_FRAME * 120 * 900

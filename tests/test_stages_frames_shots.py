"""Where a shot ends and the next begins, on real files with cuts at known frames."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts.schema import FrameFit, Sampling
from stages.frames.video import Video
from tests.media import write_video

SHOTS = Sampling(chunk_seconds=30, shots=True, fps=1, max_frames=32)
Draw = Callable[[int, int, int], NDArray[np.uint8]]


def scene(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """A picture of smooth patches, wider than it is shown, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 236, (height // 16, width // 8, 3)).astype(np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


def moving(starts: list[int], speed: int = 2) -> Draw:
    """A camera that pans over one scene after another, each from the frame named."""

    def draw(index: int, height: int, width: int) -> NDArray[np.uint8]:
        seed = sum(start <= index for start in starts)
        return np.roll(scene(seed, height, width), -speed * index, axis=1)[:, :width]

    return draw


def borders(path: Path, sampling: Sampling = SHOTS) -> list[float]:
    """Where chunks begin, in seconds; each ends where the next begins."""
    with Video(path) as video:
        chunks = [chunk.index for chunk in video.shots(sampling, FrameFit())]
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [c.end for c in chunks] == [*(c.start for c in chunks[1:]), video.duration]
    assert all(c.start <= c.times[0] and c.times[-1] < c.end for c in chunks)
    return [chunk.start for chunk in chunks]


def write(path: Path, draw: Draw, *, frames: int = 120, codec: str = "libx264") -> Path:
    return write_video(path, ticks=range(frames), size=(96, 128), codec=codec, draw=draw)


def test_cuts_are_found_at_their_very_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving([31, 62, 80]))
    assert borders(path) == [0, 31 / 30, 62 / 30, 80 / 30]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "ffv1"), ("a.avi", "mjpeg"), ("a.webm", "libvpx-vp9")]
)
def test_cuts_are_found_whatever_the_codec(tmp_path: Path, name: str, codec: str) -> None:
    path = write(tmp_path / name, moving([31]), frames=60, codec=codec)
    assert borders(path) == pytest.approx([0, 31 / 30], abs=0.001)

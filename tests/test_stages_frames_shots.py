"""Where a shot ends and the next begins, on real files with cuts at known frames."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from artifacts.schema import FrameFit, Sampling
from stages.frames.shots import Eye, distance
from stages.frames.video import Video
from tests.support.media import write_video

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


def lit(draw: Draw, light: Callable[[int], float]) -> Draw:
    """The same pictures, each under a light of its own."""

    def drawn(index: int, height: int, width: int) -> NDArray[np.uint8]:
        shade: NDArray[np.uint8] = np.clip(draw(index, height, width) * light(index), 0, 255)
        return shade.astype(np.uint8)

    return drawn


def test_cuts_are_found_at_their_very_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving([31, 62, 80]))
    assert borders(path) == [0, 31 / 30, 62 / 30, 80 / 30]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "ffv1"), ("a.avi", "mjpeg"), ("a.webm", "libvpx-vp9")]
)
def test_cuts_are_found_whatever_the_codec(tmp_path: Path, name: str, codec: str) -> None:
    path = write(tmp_path / name, moving([31]), frames=60, codec=codec)
    assert borders(path) == pytest.approx([0, 31 / 30], abs=0.001)


def test_a_pan_is_one_shot(tmp_path: Path) -> None:
    assert borders(write(tmp_path / "a.mp4", moving([], speed=9))) == [0]


def test_light_that_fades_slowly_is_one_shot(tmp_path: Path) -> None:
    fading = lit(moving([], speed=0), lambda index: 1 - 0.7 * index / 120)
    assert borders(write(tmp_path / "a.mp4", fading)) == [0]


@pytest.mark.parametrize("light", [0.0, 9.0])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_flash_or_a_blink_is_no_cut(tmp_path: Path, frames: int, light: float) -> None:
    def flash(index: int) -> float:
        return light if 40 <= index < 40 + frames else 1.0

    assert borders(write(tmp_path / "a.mp4", lit(moving([62]), flash))) == [0, 62 / 30]


def test_a_light_that_stays_on_is_a_cut(tmp_path: Path) -> None:
    gc_frozen = lit(moving([], speed=0), lambda index: 0.3 if index < 40 else 1.0)
    assert borders(write(tmp_path / "a.mp4", gc_frozen)) == [0, 40 / 30]


def test_a_fade_to_black_and_back_is_cut_where_the_picture_comes_back(tmp_path: Path) -> None:
    fade = lit(moving([60]), lambda index: min(1.0, abs(index - 60) / 15))
    (_, border) = borders(write(tmp_path / "a.mp4", fade))
    assert 60 < border * 30 <= 65


def test_a_second_cut_within_half_a_second_is_passed_over(tmp_path: Path) -> None:
    assert borders(write(tmp_path / "a.mp4", moving([5, 40, 50, 80, 110]))) == [0, 40 / 30, 80 / 30]


def test_times_of_frames_are_true_where_their_rate_changes(tmp_path: Path) -> None:
    ticks = [*range(40), *range(40, 160, 6), *range(160, 200)]
    draw = moving([30, 50])  # positions: at ticks 30 and 40 + 6 * 10
    path = write_video(tmp_path / "a.mp4", ticks=ticks, size=(96, 128), draw=draw)
    assert borders(path) == pytest.approx([0, 30 / 30, 100 / 30])


def test_every_picture_of_a_slow_slide_show_is_a_shot(tmp_path: Path) -> None:
    draw = moving([1, 2, 3, 4], speed=0)
    path = write_video(tmp_path / "a.mp4", ticks=range(0, 300, 60), size=(96, 128), draw=draw)
    assert borders(path) == [0, 2, 4, 6, 8]


def test_what_needs_converting_first_is_looked_at_all_the_same(tmp_path: Path) -> None:
    plain = np.full((96, 128), 90, dtype=np.uint8)
    plain[:48, :64] = 200
    eye = Eye()
    looks = [eye.look(VideoFrame.from_ndarray(plain, format="gray"))]
    for wanted in ("rgb24", "yuv420p10le"):
        frame = VideoFrame.from_ndarray(plain, format="gray").reformat(format=wanted)
        looks.append(eye.look(frame))
    assert distance(looks[0], looks[1]) < 0.1 and distance(looks[0], looks[2]) < 0.15


def test_a_thing_that_comes_and_goes_is_in_one_shot(tmp_path: Path) -> None:
    def draw(index: int, height: int, width: int) -> NDArray[np.uint8]:
        image = scene(0, height, width)[:, :width].copy()
        if 30 <= index < 80:
            image[height // 3 : height // 3 + 36, width // 3 : width // 3 + 48] = (255, 255, 0)
        return image

    assert borders(write(tmp_path / "a.mp4", draw)) == [0]

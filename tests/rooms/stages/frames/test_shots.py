"""Shots as chunks: where one ends and the next begins, on files with cuts at known frames; which of
their frames are taken, how they are stored, what it costs."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from artifacts.frame_fit import FrameFit
from artifacts.schema import Sampling
from stages.frames.chunk import Chunk
from stages.frames.shots import MAX_OFFSET, MIN_DISTANCE, FrameDescriptor, distance
from stages.frames.video import Video
from stages.process.memory import Sampler
from tests.rooms.stages.frames.test_run import Desk, medium
from tests.support.media import decode_plainly, digest_of_pixels, repeat_video, spoil, write_video

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


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "ffv1"), ("a.avi", "mjpeg"), ("a.webm", "libvpx-vp9")]
)
def test_cuts_are_found_whatever_the_codec(tmp_path: Path, name: str, codec: str) -> None:
    path = write(tmp_path / name, moving([31]), frames=60, codec=codec)
    assert borders(path) == pytest.approx([0, 31 / 30], abs=0.001)


@pytest.mark.parametrize("light", [0.0, 9.0])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_flash_or_a_blink_is_no_cut(tmp_path: Path, frames: int, light: float) -> None:
    def flash(index: int) -> float:
        return light if 40 <= index < 40 + frames else 1.0

    assert borders(write(tmp_path / "a.mp4", lit(moving([62]), flash))) == [0, 62 / 30]


def test_a_fade_to_black_and_back_is_cut_where_the_picture_comes_back(tmp_path: Path) -> None:
    fade = lit(moving([60]), lambda index: min(1.0, abs(index - 60) / 15))
    (_, border) = borders(write(tmp_path / "a.mp4", fade))
    assert 60 < border * 30 <= 65


def test_times_of_frames_are_true_where_their_rate_changes(tmp_path: Path) -> None:
    ticks = [*range(40), *range(40, 160, 6), *range(160, 200)]
    draw = moving([30, 50])  # positions: at ticks 30 and 40 + 6 * 10
    path = write_video(tmp_path / "a.mp4", ticks=ticks, size=(96, 128), draw=draw)
    assert borders(path) == pytest.approx([0, 30 / 30, 100 / 30])


def test_every_picture_of_a_slow_slide_show_is_a_shot(tmp_path: Path) -> None:
    draw, ticks = moving([1, 2, 3, 4], speed=0), [0, 60, 120, 180, 240, 299]
    path = write_video(tmp_path / "a.mp4", ticks=ticks, size=(96, 128), draw=draw)
    assert borders(path) == [0, 2, 4, 6, 8]


def test_what_needs_converting_first_is_looked_at_all_the_same(tmp_path: Path) -> None:
    plain = np.full((96, 128), 90, dtype=np.uint8)
    plain[:48, :64] = 200
    eye, frame = FrameDescriptor(), VideoFrame.from_ndarray(plain, format="gray")
    forms = ("rgb24", "yuv420p10le")
    looks = [eye.describe(each) for each in (frame, *(frame.reformat(format=f) for f in forms))]
    assert distance(looks[0], looks[1]) < 0.1 and distance(looks[0], looks[2]) < 0.15


def with_a_thing(index: int, height: int, width: int) -> NDArray[np.uint8]:
    """A scene in which something comes and goes."""
    image = scene(0, height, width)[:, :width].copy()
    if 30 <= index < 80:
        image[height // 3 : height // 3 + 36, width // 3 : width // 3 + 48] = (255, 255, 0)
    return image


def coloured(share: Callable[[int], float]) -> Draw:
    """Red that becomes green of the same brightness (94 of 255 in BT.601)."""

    def drawn(index: int, height: int, width: int) -> NDArray[np.uint8]:
        colour = np.array((220, 40, 40)) + share(index) * (np.array((40, 132, 40)) - (220, 40, 40))
        return np.full((height, width, 3), np.rint(colour), dtype=np.uint8)

    return drawn


def flat(first: tuple[int, int, int], last: tuple[int, int, int], frames: int) -> Draw:
    """One colour all over that becomes another, as titles fade and slides are dimmed."""

    def drawn(index: int, height: int, width: int) -> NDArray[np.uint8]:
        colour = np.array(first) + min(1.0, index / frames) * (np.array(last) - first)
        return np.full((height, width, 3), colour, dtype=np.uint8)

    return drawn


def test_a_change_of_one_level_is_small_at_every_level() -> None:
    eye = FrameDescriptor()
    flats = [np.full((96, 128), level, dtype=np.uint8) for level in range(256)]
    looks = [eye.describe(VideoFrame.from_ndarray(each, format="gray")) for each in flats]
    assert max(distance(*pair) for pair in pairwise(looks)) < MIN_DISTANCE / 2


@pytest.mark.parametrize(
    ("draw", "starts"),
    [
        (flat((40, 40, 40), (159, 159, 159), 119), [0]),  # one level per frame
        (flat((40, 40, 40), (100, 100, 100), 120), [0]),  # one level per two frames
        (flat((40, 60, 120), (200, 120, 60), 75), [0]),  # another colour
        (flat((250, 250, 250), (120, 120, 120), 110), [0]),
        (coloured(lambda index: float(index >= 40)), [0, 40]),
        (coloured(lambda index: index / 120), [0]),  # it changes slowly
        (coloured(lambda index: float(40 <= index < 42)), [0]),  # a flash
        (moving([], speed=9), [0]),  # a pan
        (with_a_thing, [0]),
        (lit(moving([], speed=0), lambda index: 1 - 0.7 * index / 120), [0]),  # it fades slowly
        (lit(moving([], speed=0), lambda index: 0.3 if index < 40 else 1.0), [0, 40]),
        (moving([5, 40, 50, 80, 110]), [0, 40, 80]),  # a second cut within half a second
        (moving([31, 62, 80]), [0, 31, 62, 80]),
    ],
)
def test_shots_begin_at_their_very_frames(draw: Draw, starts: list[int], tmp_path: Path) -> None:
    assert borders(write(tmp_path / "a.mp4", draw)) == [start / 30 for start in starts]


def cut(path: Path, *, threads: int = 0, **wishes: float) -> list[Chunk]:
    expected: dict[str, float] = {"chunk_seconds": 30, "max_frames": 32, **wishes}
    with Video(path, threads=threads) as video:
        return list(video.shots(Sampling(shots=True, **expected), FrameFit()))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shots that begin at frames 0, 40, 100 and 200 of 300."""
    return write(tmp_path_factory.mktemp("film") / "a.mp4", moving([40, 100, 200]), frames=300)


def positions(chunks: list[Chunk]) -> list[list[int]]:
    return [[round(t * 30) for t in chunk.index.times] for chunk in chunks]


def test_frames_a_second_count_from_the_shots_own_start(film: Path) -> None:
    shots = [range(0, 40, 15), range(40, 100, 15), range(100, 200, 15), range(200, 300, 15)]
    assert positions(cut(film, fps=2)) == [[*shot] for shot in shots]
    assert positions(cut(film, fps=2, max_frames=3))[3] == [200, 230, 260]
    few = cut(film, fps=1, min_frames=4)
    assert [len(chunk.index.times) for chunk in few] == [4, 4, 4, 4]
    assert [chunk.index.times[0] for chunk in few] == [chunk.index.start for chunk in few]


def test_what_is_stored_are_the_very_frames_that_the_times_say(film: Path) -> None:
    plain = decode_plainly(film)
    for chunk in cut(film, frames=5):
        for seconds, pixels in zip(chunk.index.times, chunk.pixels, strict=True):
            assert digest_of_pixels(pixels) == plain[round(seconds * 30)].digest


@pytest.mark.parametrize("count", [1, 3, 8, 32])
def test_so_many_frames_a_shot_lie_evenly_within_the_leeway(film: Path, count: int) -> None:
    for chunk in cut(film, frames=count):
        index, step = chunk.index, (chunk.index.end - chunk.index.start) / count
        assert len(index.times) == count
        for number, seconds in enumerate(index.times):
            # A place lies on a frame that began before it: one frame more.
            assert abs(seconds - index.start - number * step) <= MAX_OFFSET * step + 1.5 / 30


@pytest.mark.parametrize(
    ("seconds", "ends"),
    [
        (1.5, [40, 85, 100, 145, 200, 245, 300]),
        (1.75, [40, 100, 153, 200, 253, 300]),  # a cut just behind a piece ends that piece
    ],
)
def test_a_long_shot_is_cut_in_pieces(film: Path, seconds: float, ends: list[int]) -> None:
    chunks = cut(film, fps=1, chunk_seconds=seconds)
    assert [round(chunk.index.end * 30) for chunk in chunks] == ends


def test_a_picture_that_stands_longer_than_a_chunk_is_every_chunks_frame(tmp_path: Path) -> None:
    ticks = [0, 30, 300, 330]
    path = write_video(tmp_path / "a.mp4", ticks=ticks, size=(96, 128), draw=moving([]))
    chunks = cut(path, fps=1, chunk_seconds=3)
    assert [chunk.index.times for chunk in chunks[:4]] == [(0, 1), (1,), (1,), (10, 11)]
    with Video(path) as video:
        plans = video.plan(Sampling(fps=1, chunk_seconds=3, max_frames=32))
    assert [c.index.end for c in chunks] == [plan.end for plan in plans]


def test_one_frame_is_one_shot(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving([]), frames=1)
    (chunk,) = cut(path, frames=8)
    assert chunk.index.times == (0,)


@pytest.mark.slow
def test_a_long_shot_does_not_keep_all_of_its_frames(tmp_path: Path) -> None:
    # Twice the width at two points a frame: it goes on where it began.
    pan = write(tmp_path / "a.mp4", moving([]), frames=128)
    path = repeat_video(pan, tmp_path / "long.mp4", times=32)
    with Sampler("cpu") as memory:
        before = memory.peak_host_bytes
        (chunk,) = cut(path, threads=1, chunk_seconds=1e9, frames=8, max_frames=8)
    assert len(chunk.index.times) == 8
    assert memory.peak_host_bytes - before < 32 << 20  # all 4,096 frames would take 150 MB


def test_a_run_killed_after_any_shot_ends_with_the_same_chunks_and_bytes(
    film: Path, tmp_path: Path
) -> None:
    desk, one = Desk(tmp_path), medium(film)
    sampling = {"chunk_seconds": 2, "shots": True, "frames": 3, "max_frames": 3}
    stored = desk.run(one, sampling=sampling)
    undisturbed = [desk.record_set("frames").read(key).payload for key in stored]
    index = desk.record_set("media").meta(one["digest"])
    assert [round(chunk["end"] * 30) for chunk in index["chunks"]] == [40, 100, 160, 200, 260, 300]
    for killed_after in (0, 2, 3, 6):
        desk.record_set("frames").drop(stored[killed_after:])
        desk.record_set("media").drop([one["digest"]])
        assert desk.run(one, sampling=sampling) == stored[killed_after:]
        assert [desk.record_set("frames").read(key).payload for key in stored] == undisturbed
        assert desk.record_set("media").meta(one["digest"]) == index
    desk.record_set("frames").drop(stored)  # of a known video: made again when wanted
    assert desk.run({**one, "chunk_indexes": [3]}, sampling=sampling) == [stored[3]]
    assert desk.record_set("frames").read(stored[3]).payload == undisturbed[3]


def test_shots_around_damage_are_cut_and_told_of(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mov", moving([40, 100], speed=0), frames=150, codec="mjpeg")
    desk = Desk(tmp_path)
    one = medium(spoil(whole, tmp_path / "a.mov", which=range(60, 80).__contains__))
    sampling = {"chunk_seconds": 30, "shots": True, "fps": 5, "max_frames": 99}
    stored = desk.run(one, sampling=sampling)
    index = desk.record_set("media").meta(one["digest"])
    assert [round(chunk["start"] * 30) for chunk in index["chunks"]] == [0, 40, 100]
    assert len(stored) == 3 and any("could not be decoded" in text for text in index["damage"])

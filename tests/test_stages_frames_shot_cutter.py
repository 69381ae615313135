"""Shots as chunks: which of their frames are taken, how they are stored, what it costs."""

import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.schema import ChunkIndex, FrameFit, Sampling
from stages.frames.shot_cutter import KEPT_PER_FRAME, LEEWAY, Kept, _Piece
from stages.frames.video import Chunk, Video
from tests.support.media import decode_plainly, digest_of_pixels, repeat_video, spoil, write_video
from tests.test_stages_frames_run import Desk, medium
from tests.test_stages_frames_shots import moving, write

FIT = FrameFit()


def cut(path: Path, *, threads: int = 0, **wishes: float) -> list[Chunk]:
    wanted: dict[str, float] = {"chunk_seconds": 30, "max_frames": 32, **wishes}
    with Video(path, threads=threads) as video:
        return list(video.shots(Sampling(shots=True, **wanted), FIT))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shots that begin at frames 0, 40, 100 and 200 of 300."""
    return write(tmp_path_factory.mktemp("film") / "a.mp4", moving([40, 100, 200]), frames=300)


def positions(chunks: list[Chunk]) -> list[list[int]]:
    return [[round(t * 30) for t in chunk.index.times] for chunk in chunks]


def test_frames_a_second_count_from_the_shots_own_start(film: Path) -> None:
    assert positions(cut(film, fps=2)) == [
        [0, 15, 30],
        [40, 55, 70, 85],
        [100, 115, 130, 145, 160, 175, 190],
        [200, 215, 230, 245, 260, 275, 290],
    ]
    assert positions(cut(film, fps=2, max_frames=3))[3] == [200, 230, 260]


def test_what_is_stored_are_the_very_frames_that_the_times_say(film: Path) -> None:
    plain = decode_plainly(film)
    for chunk in cut(film, frames=5):
        for seconds, pixels in zip(chunk.index.times, chunk.pixels, strict=True):
            assert digest_of_pixels(pixels) == plain[round(seconds * 30)].digest


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16, 32])
def test_so_many_frames_a_shot_lie_evenly_within_the_leeway(film: Path, count: int) -> None:
    for chunk in cut(film, frames=count):
        index, step = chunk.index, (chunk.index.end - chunk.index.start) / count
        assert len(index.times) == count
        for number, seconds in enumerate(index.times):
            # A place lies on a frame that began before it: one frame more.
            assert abs(seconds - index.start - number * step) <= LEEWAY * step + 1.5 / 30


def test_a_short_shot_has_the_least_number_of_frames(film: Path) -> None:
    chunks = cut(film, fps=1, min_frames=4)
    assert [len(chunk.index.times) for chunk in chunks] == [4, 4, 4, 4]
    assert [chunk.index.times[0] for chunk in chunks] == [chunk.index.start for chunk in chunks]


def test_a_long_shot_is_cut_in_pieces(film: Path) -> None:
    ends = [round(chunk.index.end * 30) for chunk in cut(film, fps=1, chunk_seconds=1.5)]
    assert ends == [40, 85, 100, 145, 200, 245, 300]


def test_a_cut_just_behind_a_piece_ends_that_piece(film: Path) -> None:
    ends = [round(chunk.index.end * 30) for chunk in cut(film, fps=1, chunk_seconds=1.75)]
    assert ends == [40, 100, 153, 200, 253, 300]


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


def test_shots_do_not_depend_on_threads_or_on_where_a_run_goes_on(film: Path) -> None:
    def digests(chunks: list[Chunk]) -> list[tuple[ChunkIndex, str]]:
        return [(chunk.index, digest_of_pixels(chunk.pixels)) for chunk in chunks]

    sampling = Sampling(shots=True, chunk_seconds=1.5, frames=4, max_frames=4)
    wanted = digests(cut(film, chunk_seconds=1.5, frames=4, threads=1))
    assert digests(cut(film, chunk_seconds=1.5, frames=4, threads=3)) == wanted
    for done in range(len(wanted) + 1):
        with Video(film) as video:
            rest = video.shots(sampling, FIT, after=[index for index, _ in wanted[:done]])
            assert digests(list(rest)) == wanted[done:]
    with Video(film) as video:
        again = video.chunks(video.plan_again([index for index, _ in wanted]), FIT)
        assert digests(list(again)) == wanted


def test_frames_that_may_be_taken_are_bounded(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, held = _Piece.keep, [0]

    def watched(piece: _Piece, kept: Kept) -> None:
        keep(piece, kept)
        held.append(len(piece._kept))

    monkeypatch.setattr(_Piece, "keep", watched)
    chunks = cut(film, fps=30, max_frames=4)
    assert [len(chunk.index.times) for chunk in chunks] == [4, 4, 4, 4]
    assert 4 < max(held) <= 4 * KEPT_PER_FRAME


PEAK = """
import sys
from pathlib import Path
from artifacts.schema import FrameFit, Sampling
from stages.frames.video import Video
from stages.process.memory import Sampler

with Sampler("cpu") as memory, Video(Path(sys.argv[1]), threads=1) as video:
    shots = video.shots(Sampling(shots=True, chunk_seconds=1e9, frames=8, max_frames=8), FrameFit())
    count = sum(len(chunk.index.times) for chunk in shots)
print(count, memory.peak_host_bytes)
"""


def test_one_long_shot_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    # Twice the width at two points a frame: it goes on where it began.
    pan = write(tmp_path / "a.mp4", moving([]), frames=128)
    peaks = []
    for times in (2, 32):
        path = repeat_video(pan, tmp_path / f"{times}.mp4", times=times)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(path)], check=True, capture_output=True, text=True
        )
        count, peak = map(int, done.stdout.split())
        assert count == 8
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 16 << 20  # all 4,096 frames would take 150 MB


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


def test_deleted_shots_of_a_known_video_are_made_again_when_wanted(
    film: Path, tmp_path: Path
) -> None:
    desk, one = Desk(tmp_path), medium(film)
    sampling = {"chunk_seconds": 2, "shots": True, "frames": 3, "max_frames": 3}
    stored = desk.run(one, sampling=sampling)
    before = desk.record_set("frames").read(stored[3]).payload
    desk.record_set("frames").drop(stored)
    assert desk.run({**one, "wanted": [3]}, sampling=sampling) == [stored[3]]
    assert desk.record_set("frames").read(stored[3]).payload == before


def test_shots_around_damage_are_cut_and_told_of(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mov", moving([40, 100], speed=0), frames=150, codec="mjpeg")
    desk, one = (
        Desk(tmp_path),
        medium(spoil(whole, tmp_path / "a.mov", which=range(60, 80).__contains__)),
    )
    stored = desk.run(
        one, sampling={"chunk_seconds": 30, "shots": True, "fps": 5, "max_frames": 99}
    )
    index = desk.record_set("media").meta(one["digest"])
    assert [round(chunk["start"] * 30) for chunk in index["chunks"]] == [0, 40, 100]
    assert len(stored) == 3 and any("could not be decoded" in said for said in index["warnings"])

"""Chunks that are as long as the frames that a trainer takes of each, and clips with these frames
at their rate: counted here by whole numbers, and read by the number that each picture shows."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts.frame_fit import FrameFit
from artifacts.schema import ChunkIndex, MediaIndex, Sampling
from stages.frames.cut import ExactCutter
from stages.frames.timeline import exact_rate
from stages.frames.video import Video
from tests.rooms.stages.frames.test_run import Desk, medium
from tests.rooms.stages.frames.test_shots import moving
from tests.support.media import decode_plainly, digest_of_pixels, write_video
from tests.support.trainers import musubi_picks

FILM = Fraction(24000, 1001)
RATES = (FILM, Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(50))
SLOW = Fraction(12)
VARYING = [0, 3, 6, 7, 12, 15, 16, 21, 24, 25, 30, 33, 36, 41, 42, 48, 51, 52, 57, 60, 63, 66, 70]
"""Positions of frames, in ticks of 1/30 s."""
BITS = 9


def numbered(index: int, height: int, width: int) -> NDArray[np.uint8]:
    """A picture with a bright block for each bit of its number."""
    bits = np.array([[index >> (3 * row + column) & 1 for column in range(3)] for row in range(3)])
    blocks = (40 + 180 * bits).astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    return np.repeat(blocks[:height, :width, None], 3, axis=2)


def numbers_in(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    of_bits = 1 << np.arange(BITS).reshape(3, 3)
    return [int(((frame[8:48:16, 8:48:16] > 130) * of_bits).sum()) for frame in frames]


def write(path: Path, rate: Fraction, frames: int) -> Path:
    options: dict[str, Any] = {"size": (48, 48), "draw": numbered, "gop": 20}
    return write_video(path, ticks=range(frames), time_base=1 / rate, **options)


def write_varying(path: Path) -> Path:
    return write_video(path, ticks=VARYING, size=(48, 48), draw=numbered, gop=5)


def clips_of(frames: int, fps: float, **more: Any) -> Sampling:
    return Sampling(
        chunk_seconds=frames / fps,
        fps=2,
        max_frames=32,
        clip_frames=frames,
        clip_fps=fps,
        **more,
    )


def spans(path: Path, sampling: Sampling) -> list[tuple[float, float]]:
    with Video(path) as video:
        return [(plan.start, plan.end) for plan in video.plan(sampling)]


def needed(frames: int, rate: Fraction, fps: int) -> int:
    """The fewest frames of a video that last as long as `frames` frames at `fps`."""
    return next(count for count in range(1000) if count * fps >= frames * rate)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("rate", [*RATES, SLOW])
@pytest.mark.parametrize(("frames", "fps"), [(17, 16), (25, 24), (9, 30)])
def test_chunks_are_the_frames_that_a_trainer_needs(
    tmp_path: Path, name: str, rate: Fraction, frames: int, fps: int
) -> None:
    path, count = write(tmp_path / name, rate, 100), needed(frames, rate, fps)
    starts = [frame.seconds for frame in decode_plainly(path)]
    expected = [(at, at + count) for at in range(0, 100 - count + 1, count)]
    result = spans(path, clips_of(frames, fps))
    assert [start for start, _ in result] == pytest.approx([starts[low] for low, _ in expected])
    ends = [(starts[high] if high < 100 else 100 / float(rate)) for _, high in expected]
    assert [end for _, end in result] == pytest.approx(ends, abs=1e-3)


def test_of_a_slower_video_a_trainer_that_repeats_none_gets_as_many_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", SLOW, 60)
    own = spans(path, clips_of(17, 16, clip_own=True))
    assert np.diff(own).flatten() == pytest.approx([17 / 12] * 3)
    assert np.diff(spans(path, clips_of(17, 16))).flatten() == pytest.approx([13 / 12] * 4)
    faster = write(tmp_path / "b.mp4", Fraction(30), 60)
    assert spans(faster, clips_of(9, 16, clip_own=True)) == spans(faster, clips_of(9, 16))


def test_a_varying_rate_is_divided_by_its_times(tmp_path: Path) -> None:
    path = write_varying(tmp_path / "a.mp4")
    with Video(path) as video:
        duration = video.duration
    first, second = spans(path, clips_of(17, 16))
    assert [*first, *second] == pytest.approx([0, 17 / 16, 17 / 16, 17 / 8])
    *_, last = spans(path, clips_of(17, 16, clip_overlap=True))
    assert last == pytest.approx((duration - 17 / 16, duration))


def test_the_rest_is_one_more_clip_that_overlaps(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", Fraction(30), 100)
    sampling = clips_of(17, 16, clip_overlap=True)
    plain = {frame.seconds: frame.digest for frame in decode_plainly(path)}
    with Video(path) as video:
        chunks = list(video.chunks(video.plan(sampling), FrameFit()))
    spans = [(round(30 * c.index.start), round(30 * c.index.end)) for c in chunks]
    assert spans == [(0, 32), (32, 64), (64, 96), (68, 100)]
    for chunk in chunks:
        assert all(chunk.index.start <= time < chunk.index.end for time in chunk.index.times)
        digests = [digest_of_pixels(pixels) for pixels in chunk.pixels]
        assert digests == [plain[time] for time in chunk.index.times]
    exact = write(tmp_path / "b.mp4", Fraction(30), 64)
    assert spans_of_frames(exact, sampling) == [(0, 32), (32, 64)], "nothing is left"
    assert spans_of_frames(write(tmp_path / "c.mp4", Fraction(30), 31), sampling) == []


def spans_of_frames(path: Path, sampling: Sampling) -> list[tuple[int, int]]:
    return [(round(30 * start), round(30 * end)) for start, end in spans(path, sampling)]


def test_no_clip_crosses_a_cut_and_short_shots_are_left_out(tmp_path: Path) -> None:
    cuts = [40, 60, 150]
    options: dict[str, Any] = {"size": (96, 128), "draw": moving(cuts)}
    path = write_video(tmp_path / "a.mp4", ticks=range(190), **options)
    dropped = spans_of_frames(path, clips_of(17, 16, shots=True))
    assert dropped == [(0, 32), (60, 92), (92, 124), (150, 182)]
    overlapping = spans_of_frames(path, clips_of(17, 16, shots=True, clip_overlap=True))
    more = [(8, 40), (118, 150), (158, 190)]
    assert sorted(overlapping) == sorted([*dropped, *more])


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    return {**sampling.key_fields, "fps": 2, "frames": None}


def test_a_file_that_is_shorter_has_no_chunks_and_is_done(tmp_path: Path) -> None:
    desk, path = Desk(tmp_path), write(tmp_path / "a.mp4", Fraction(30), 31)
    fields = sampling_fields(clips_of(17, 16))
    assert desk.run(medium(path), sampling=fields) == []
    assert not desk.told("failed")
    (key,) = desk.record_set("media").keys()
    assert desk.record_set("media").meta(key)["chunks"] == []
    assert desk.run(medium(path), sampling=fields) == []


def test_a_killed_run_goes_on_with_the_clips_of_shots_that_it_lacks(tmp_path: Path) -> None:
    options: dict[str, Any] = {"size": (96, 128), "draw": moving([40, 60, 150])}
    path = write_video(tmp_path / "a.mp4", ticks=range(190), **options)
    fields = sampling_fields(clips_of(17, 16, shots=True, clip_overlap=True))
    desk = Desk(tmp_path)
    keys = desk.run(medium(path), sampling=fields)
    index = desk.record_set("media").meta(medium(path)["digest"])
    assert len(keys) == len(index["chunks"]) == 7
    desk.record_set("media").drop([medium(path)["digest"]])
    desk.record_set("frames").drop(keys[2:5])
    assert desk.run(medium(path), sampling=fields) == keys[2:5]
    assert desk.record_set("media").meta(medium(path)["digest"]) == index


def test_gaps_are_what_no_chunk_covers() -> None:
    values: dict[str, Any] = {"times": (), "height": 1, "width": 1}
    chunks = [
        {"index": at, "start": start, "end": end, **values}
        for at, (start, end) in enumerate([(1.0, 3.0), (2.0, 4.0), (5.0, 6.0)])
    ]
    index = MediaIndex(
        kind="video",
        height=1,
        width=1,
        start=0.5,
        duration=6.0,
        chunks=tuple(ChunkIndex(**chunk) for chunk in chunks),
    )
    assert index.gaps == [(0.5, 1.0), (4.0, 5.0), (6.0, 6.5)]


def cut(path: Path, folder: Path, sampling: Sampling, *, retimed: bool) -> list[Path]:
    of_clips = spans(path, sampling)
    cutter = ExactCutter(path, of_clips, clip=(sampling.clip_frames, sampling.clip_fps))
    names = [f"{path.stem}-{at}" for at in range(len(of_clips))]
    made = [cutter.cut(at, folder / name, retimed=retimed) for at, name in enumerate(names)]
    cutter.close()
    return [folder / each["file"] for each in made]


def timing_of(path: Path) -> tuple[Fraction, int, set[Fraction]]:
    """The rate that the header states, its number of frames, and the steps between their times."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        clock, rate = stream.time_base, stream.average_rate
        assert clock is not None and rate is not None
        times = [(frame.pts or 0) * clock for frame in container.decode(video=0)]
        return rate, stream.frames, {b - a for a, b in pairwise(times)}


@pytest.mark.parametrize("rate", [*RATES, Fraction(60)])
@pytest.mark.parametrize(("frames", "fps"), [(17, 24), (25, 25)])
def test_a_clip_that_is_timed_anew_has_the_frames_that_a_trainer_takes(
    tmp_path: Path, rate: Fraction, frames: int, fps: int
) -> None:
    path = write(tmp_path / "a.mp4", rate, 150)
    count = needed(frames, rate, fps)
    clips = cut(path, tmp_path, clips_of(frames, fps), retimed=True)
    assert len(clips) == 150 // count
    for at, clip in enumerate(clips):
        result = [number - at * count for number in numbers_in(clip)]
        assert len(result) == frames and result[0] == 0 and result == sorted(result)
        assert result == [
            min(count - 1, next(n for n in range(count + 1) if n * fps >= k * rate))
            for k in range(frames)
        ]
        if rate > fps:  # as the trainer that leaves out frames takes them; its sums are inexact
            taken = musubi_picks(count, float(rate), fps)[:frames]
            assert np.abs(np.subtract(result, taken)).max() <= 1
        step = max(Fraction(1), rate / fps)
        assert count - 1 - result[-1] < step, "less than a step is left"
        assert timing_of(clip) == (Fraction(fps), frames, {Fraction(1, fps)})


def test_a_clip_of_a_varying_rate_shows_what_is_on_display(tmp_path: Path) -> None:
    path = write_varying(tmp_path / "a.mp4")
    for retimed in (False, True):
        first, second = cut(path, tmp_path, clips_of(17, 16), retimed=retimed)
        for at, clip in enumerate((first, second)):
            moments = [30 * (at * 17 + k) / 16 for k in range(17)]
            shown = [max(i for i, t in enumerate(VARYING) if t <= m) for m in moments]
            own = next(i for i, t in enumerate(VARYING) if t >= moments[0])
            assert numbers_in(clip) == [max(number, own) for number in shown]
            assert timing_of(clip) == (Fraction(16), 17, {Fraction(1, 16)})


def test_a_constant_rate_stays_unless_the_trainer_takes_frames_as_they_come(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.mp4", FILM, 60)
    (clip, *_) = cut(path, tmp_path, clips_of(17, 16), retimed=False)
    assert timing_of(clip)[:2] == (FILM, 26)
    assert numbers_in(clip) == [*range(26)]
    (same, *_) = cut(path, tmp_path, clips_of(17, 23.976), retimed=True)
    assert numbers_in(same) == [*range(17)] and timing_of(same)[0] == FILM


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (23.976, FILM), (23.98, None), (29.97, Fraction(30000, 1001)), (24.0, Fraction(24)),
        (59.94, Fraction(60000, 1001)), (16.0, Fraction(16)), (12.5, Fraction(25, 2)),
        (0.0004, Fraction(1, 2500)),
    ],
)  # fmt: skip
def test_a_rate_of_film_is_the_exact_one(fps: float, rate: Fraction | None) -> None:
    assert exact_rate(fps) == (Fraction("23.98") if rate is None else rate)

"""What is cut from a video is what a plain decode of the whole file shows at those times."""

from array import array
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from artifacts.schema import FrameFit, Sampling
from stages.frames.reader import Reader
from stages.frames.video import Chunk, Video
from tests.support.media import decode_plainly, digest_of_pixels, picture, repeat_video, write_video

AS_IT_IS = FrameFit()
EVERY_SECOND = Sampling(chunk_seconds=2, fps=1, max_frames=32)


def cut(path: Path, sampling: Sampling = EVERY_SECOND, fit: FrameFit = AS_IT_IS) -> list[Chunk]:
    with Video(path) as video:
        return list(video.chunks(video.plan(sampling), fit))


def assert_same_as_plain_decode(path: Path, chunks: list[Chunk]) -> None:
    plain = {frame.seconds: frame.digest for frame in decode_plainly(path)}
    for chunk in chunks:
        for seconds, pixels in zip(chunk.index.times, chunk.pixels, strict=True):
            assert plain[seconds] == digest_of_pixels(pixels)


def times(chunks: list[Chunk]) -> list[float]:
    return [seconds for chunk in chunks for seconds in chunk.index.times]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("h264.mp4", "libx264", None),
        ("h264.mkv", "libx264", None),
        ("h264.ts", "libx264", None),
        ("open.mkv", "libx264", {"bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
        ("refresh.mp4", "libx264", {"x264-params": "intra-refresh=1"}),
        (
            "vp8.webm",
            "libvpx",
            {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"},
        ),
        ("vp9.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
        ("mpeg4.avi", "mpeg4", {"bf": "2"}),
        ("mjpeg.avi", "mjpeg", None),
        ("mpeg2.ts", "mpeg2video", {"bf": "2"}),
    ],
)
@pytest.mark.parametrize("fps", [0.5, 4])
def test_frames_are_those_of_a_plain_decode(
    tmp_path: Path, name: str, codec: str, options: dict[str, str] | None, fps: float
) -> None:
    path = write_video(tmp_path / name, ticks=range(150), codec=codec, options=options)
    sampling = Sampling(chunk_seconds=2, fps=fps, max_frames=32)
    chunks = cut(path, sampling)
    assert_same_as_plain_decode(path, chunks)
    assert [(c.index.start, c.index.end) for c in chunks] == [(0, 2), (2, 4), (4, 5)]
    shown = [int(30 * target / fps) / 30 for target in range(int(5 * fps) + (fps < 1))]
    assert times(chunks) == pytest.approx(shown, abs=0.001)


def test_variable_frame_rate_keeps_the_files_own_times(tmp_path: Path) -> None:
    ticks = [0, 40, 47, 333, 334, 900, 1201, 1999, 2500, 4800]
    path = write_video(tmp_path / "vfr.mkv", ticks=ticks, time_base=Fraction(1, 1000))
    chunks = cut(path)
    assert_same_as_plain_decode(path, chunks)
    assert times(chunks) == [0.0, 0.9, 2.5, 4.8]
    assert [len(c.index.times) for c in chunks] == [2, 1, 1]


def test_times_count_from_a_late_first_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.ts", ticks=range(300, 390))
    with av.open(str(path)) as container:
        assert (container.streams.video[0].start_time or 0) > 0
    assert times(cut(path)) == [0.0, 1.0, 2.0]


def test_groups_without_a_wanted_frame_are_not_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", ticks=range(600))
    reader = Reader(path, threads=1)
    packets_decoded = 0
    decode = reader.decoder._decode

    def count(packet: object) -> None:
        nonlocal packets_decoded
        packets_decoded += packet is not None
        decode(packet)  # type: ignore[arg-type]

    reader.decoder._decode = count  # type: ignore[method-assign]
    wanted = [0, 300, 580]
    ticks = [int(reader.timeline.pts[at]) for at in wanted]
    reader.want(array("q", ticks))
    found = [reader.at(at, 0, 1 << 60) for at in ticks]
    reader.close()
    assert [f[0] for f in found if f is not None] == ticks
    assert packets_decoded < 40


def test_seeking_and_reading_on_give_the_same_bytes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "gop.mp4", ticks=range(300), gop=40)
    sampling = Sampling(chunk_seconds=1.5, frames=1, max_frames=1)
    with Video(path) as video:
        sought = list(video.chunks(video.plan(sampling), AS_IT_IS))
    with Video(path) as video:
        video._reader.timeline = replace(video._reader.timeline, keyframes=None)
        read = list(video.chunks(video.plan(sampling), AS_IT_IS))
    assert [c.index for c in sought] == [c.index for c in read]
    for one, other in zip(sought, read, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_a_keyframe_list_that_leads_astray_is_not_believed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "lies.mp4", ticks=range(300), gop=40)
    with Video(path) as video:
        keys = video._reader.timeline.keyframes
        assert keys is not None
        for at in range(1, len(keys.pts)):
            keys.dts[at] += 100_000
        plans = video.plan(Sampling(chunk_seconds=5, fps=0.2, max_frames=4))
        chunks = list(video.chunks(plans, AS_IT_IS))
    assert times(chunks) == [0.0, 5.0]
    assert_same_as_plain_decode(path, chunks)


def test_only_the_chunks_asked_for_are_cut(tmp_path: Path) -> None:
    path = write_video(tmp_path / "some.mp4", ticks=range(300))
    everything = cut(path)
    with Video(path) as video:
        plans = video.plan(EVERY_SECOND)
        some = list(video.chunks([plans[1], plans[4]], AS_IT_IS))
        again = list(video.chunks(plans, AS_IT_IS))
    assert [c.index for c in some] == [everything[1].index, everything[4].index]
    np.testing.assert_array_equal(some[1].pixels, everything[4].pixels)
    assert [c.index for c in again] == [c.index for c in everything]


def test_an_odd_size_is_kept(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "odd.webm", size=(47, 63), codec="libvpx-vp9", options={"deadline": "realtime"}
    )
    (chunk,) = cut(path)
    assert chunk.pixels.shape == (1, 47, 63, 3)
    assert_same_as_plain_decode(path, [chunk])


def test_one_frame_is_one_chunk(tmp_path: Path) -> None:
    (chunk,) = cut(write_video(tmp_path / "one.mp4", ticks=[0]))
    assert chunk.index.times == (0.0,)
    assert chunk.index.end > 0


def test_raw_video_without_times_is_told_by_counting(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", ticks=range(50))
    with Video(path) as video:
        assert video.duration == pytest.approx(2.0)
        plans = video.plan(Sampling(chunk_seconds=1, fps=5, max_frames=8))
        chunks = list(video.chunks(plans, AS_IT_IS))
        later = list(video.chunks(plans[1:], AS_IT_IS))
    assert times(chunks) == pytest.approx([j / 5 for j in range(10)])
    np.testing.assert_array_equal(later[0].pixels, chunks[1].pixels)
    for frame, pixels in enumerate(chunks[0].pixels):
        assert np.abs(pixels.astype(int) - picture(frame * 5)).mean() < 12


def test_reordered_frames_in_avi_are_told_by_counting(tmp_path: Path) -> None:
    path = write_video(tmp_path / "h264.avi", ticks=range(60))
    chunks = cut(path, Sampling(chunk_seconds=1, fps=6, max_frames=8))
    assert times(chunks) == pytest.approx([j / 6 for j in range(12)])
    for at, pixels in enumerate(np.concatenate([c.pixels for c in chunks])):
        assert np.abs(pixels.astype(int) - picture(at * 5)).mean() < 12


def test_joined_recordings_run_on_where_the_clock_is_set_anew(tmp_path: Path) -> None:
    one = write_video(tmp_path / "one.ts", ticks=range(90)).read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(one + one)
    with Video(path) as video:
        chunks = list(video.chunks(video.plan(EVERY_SECOND), AS_IT_IS))
        assert "clock" in video.warnings()[0]
    assert times(chunks) == pytest.approx([0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(chunks[0].pixels[0], chunks[1].pixels[1])


def test_the_best_of_several_streams_is_taken_and_sound_is_left_alone(tmp_path: Path) -> None:
    path = write_video(tmp_path / "sound.mp4", audio=True)
    (chunk,) = cut(path)
    assert_same_as_plain_decode(path, [chunk])


def test_every_frame_can_be_had(tmp_path: Path) -> None:
    path = repeat_video(write_video(tmp_path / "second.mp4"), tmp_path / "minute.mp4", times=20)
    chunks = cut(path, Sampling(chunk_seconds=3, fps=30, max_frames=1000))
    plain = decode_plainly(path)
    assert times(chunks) == [frame.seconds for frame in plain]
    digests = [digest_of_pixels(pixels) for chunk in chunks for pixels in chunk.pixels]
    assert digests == [frame.digest for frame in plain]

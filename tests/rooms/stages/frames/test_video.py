"""What is cut from a video is what a plain decode of the whole file shows at those times, and comes
out as a player shows it: turned, mirrored, stretched, of the size asked for; also of real files."""

from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from artifacts.frame_fit import FrameFit
from artifacts.schema import MediaIndex, Sampling
from stages.frames.chunk import Chunk
from stages.frames.image import read_image
from stages.frames.video import Video
from tests.support.file_classes import FRAMES, WHOLE, FileClass
from tests.support.media import (
    decode_plainly,
    decoded_packets,
    digest_of_pixels,
    picture,
    write_video,
)

AS_IT_IS = FrameFit()
EVERY_SECOND = Sampling(chunk_seconds=2, fps=1, max_frames=32)
TWICE_A_SECOND = Sampling(chunk_seconds=1, fps=2, max_frames=32)
FAST = {"deadline": "realtime", "cpu-used": "8"}


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
    ("name", "codec", "options", "fps"),
    [
        ("h264.mp4", "libx264", None, 0.5),
        ("h264.mp4", "libx264", None, 4),
        ("h264.mkv", "libx264", None, 0.5),
        ("h264.ts", "libx264", None, 0.5),
        ("open.mkv", "libx264", {"bf": "3", "x264-params": "open-gop=1:scenecut=0"}, 0.5),
        ("refresh.mp4", "libx264", {"x264-params": "intra-refresh=1"}, 0.5),
        ("vp8.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", **FAST}, 4),
        ("vp9.webm", "libvpx-vp9", FAST, 0.5),
        ("mpeg4.avi", "mpeg4", {"bf": "2"}, 4),
        ("mjpeg.avi", "mjpeg", None, 4),
        ("mpeg2.ts", "mpeg2video", {"bf": "2"}, 0.5),
    ],
)
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


def test_groups_without_a_wanted_frame_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "long.mp4", ticks=range(600))
    decoded = decoded_packets(monkeypatch)
    with Video(path, threads=1) as video:
        plans = video.plan(Sampling(chunk_seconds=20, fps=0.1, max_frames=4))
        chunks = list(video.chunks(plans, AS_IT_IS))
    assert times(chunks) == [0.0, 10.0]
    assert len(decoded) < 40


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


def pack_b_frames(plain: Path, path: Path) -> None:
    """Write what DivX and XviD write: all B-frames but the first lie behind the frame that is shown
    after them, in one packet, and an empty frame takes their place."""
    with av.open(str(plain)) as source, av.open(str(path), "w") as container:
        stream = source.streams.video[0]
        first, second, third, *later = (
            bytes(packet) for packet in source.demux(stream) if packet.size
        )
        at = first.index(b"\0\0\1\xb6")
        packed = [first[:at] + b"\0\0\1\xb2DivX503b1393p" + first[at:], second, third]
        for shown_later, b_frame in zip(later[::2], later[1::2], strict=True):
            packed += [shown_later + b_frame, b"\0\0\1\xb6\x51\x4f"]
        copy = container.add_stream_from_template(stream)
        copy.codec_context.extradata = packed[0][: packed[0].index(b"\0\0\1\xb6")]
        for slot, data in enumerate(packed):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts = copy, slot, slot
            packet.is_keyframe = slot == 0
            container.mux(packet)


def test_packed_b_frames_of_avi_are_told_by_counting(tmp_path: Path) -> None:
    options = {"bf": "1", "b_strategy": "0", "sc_threshold": "1000000000"}
    plain = write_video(
        tmp_path / "plain.avi", ticks=range(61), codec="mpeg4", options=options, gop=200
    )
    pack_b_frames(plain, packed := tmp_path / "packed.avi")
    sampling = Sampling(chunk_seconds=1, fps=30, max_frames=30)
    for chunk, expected in zip(cut(packed, sampling), cut(plain, sampling), strict=True):
        assert chunk.index == expected.index
        np.testing.assert_array_equal(chunk.pixels, expected.pixels)


def test_joined_recordings_run_on_where_the_clock_is_set_anew(tmp_path: Path) -> None:
    one = write_video(tmp_path / "one.ts", ticks=range(90)).read_bytes()
    (path := tmp_path / "joined.ts").write_bytes(one + one)
    with Video(path) as video:
        chunks = list(video.chunks(video.plan(EVERY_SECOND), AS_IT_IS))
        assert "clock" in video.warnings()[0]
    assert times(chunks) == pytest.approx([0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(chunks[0].pixels[0], chunks[1].pixels[1])


def test_frames_come_out_at_the_size_asked_for(tmp_path: Path) -> None:
    path = write_video(tmp_path / "odd.mp4", size=(54, 96), rotation=90)
    (chunk,) = cut(path, fit=FrameFit(long_edges=((1.0, 48),)))
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
    options = {"preset": "ultrafast", "x264-params": "colormatrix=YCgCo"}
    path = write_video(tmp_path / "a.mp4", options=options)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == 8
    assert cut(path)[0].pixels.shape == (1, 48, 64, 3)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * n.startswith("HDR")) for n in WHOLE]
)
def test_it_is_covered_to_its_end_and_each_picture_is_that_of_its_time(
    tmp_path: Path, name: str
) -> None:
    kind = WHOLE[name]
    try:
        av.codec.Codec(kind.encoder, "w")
    except ValueError:
        pytest.skip(f"this FFmpeg cannot write {kind.encoder}")
    path = tmp_path / f"a{kind.suffix}"
    kind.make(path)
    with Video(path) as video:
        chunks = list(video.chunks(video.plan(TWICE_A_SECOND), AS_IT_IS))
        index = video.media_index([chunk.index for chunk in chunks])
    assert index.warnings == ()
    assert (index.height, index.width) == kind.size
    assert index.duration == pytest.approx(kind.duration, abs=0.002)
    assert (index.start, chunks[0].index.start) == (kind.start, kind.start)
    assert chunks[-1].index.end == index.start + index.duration
    assert all(a.index.end == b.index.start for a, b in pairwise(chunks))
    taken = [seconds - kind.start for seconds in times(chunks)]
    at = [int(np.abs(np.array(kind.times) - seconds).argmin()) for seconds in taken]
    assert [kind.times[n] for n in at] == pytest.approx(taken, abs=0.002)
    assert at == sorted(set(at))
    assert np.diff([*taken, kind.duration]).max() < 1.1 and taken[0] == 0
    found = [nearest(pixels, kind, name) for chunk in chunks for pixels in chunk.pixels]
    assert found == [kind.shows(n) for n in at]


def nearest(pixels: NDArray[np.uint8], kind: FileClass, name: str) -> int:
    """Which of the pictures that were drawn this one is."""
    height, width = kind.size
    turned = name == "rotated"
    size = (width, height) if turned else (height, width)
    drawn = [np.rot90(picture(index, *size), turned) for index in range(FRAMES)]
    away = [np.abs(pixels.astype(int) - upright).mean() for upright in drawn]
    assert min(away) < (30 if name.startswith("HDR") else 12)
    return int(np.argmin(away))


QUICK = (
    *("intel_asl_book.mkv", "mpy_nodur.webm", "psd_delayed.mp4", "awkward/vfr_30_to_4.mp4"),
    *("awkward/geese.ts", "awkward/trunc_faststart.mp4"),
)
SLOW = (
    *("intel_person.mp4", "intel_bottle.mp4", "intel_car.mp4", "v2d_test.mp4", "tc_nasa.mp4"),
    *("tc_h264_10.mp4", "mpy_fire2.mp4", "gr_world.mp4", "gr_badcont.mkv", "decord_rot90.mov"),
    *("mei_flir.mp4", "mei_road.avi", "mei_sea.mp4", "awkward/odd_427x239.webm"),
    *("awkward/editlist_copycut.mp4", "awkward/bitflip.mp4", "awkward/oneframe.mp4"),
)
DAMAGED = {
    "awkward/trunc_faststart.mp4": "of the stated 24.02 s",
    "awkward/bitflip.mp4": "damaged, the first at",
}
PHOTOS = {
    "photos/mei_heic_IMG_2929.HEIC": (4032, 3024),  # upright
    "photos/exs_corrupted.jpg": (2736, 3648),
    "photos/mei_jpg_Issue_266.jpg": (3840, 5760),
    "photos/rec_Landscape_6.jpg": (1200, 1800),
    "photos/ski_chelsea.png": (300, 451),
    "photos/ski_coffee.png": (400, 600),
}
TEN_SECONDS = Sampling(chunk_seconds=10, fps=1, max_frames=32)
SMALL = FrameFit(long_edges=((1.0, 128),))


LARGE_BYTES = 4_000_000
"""A file larger than this is asked by its packets, as decoding all of it takes too long."""


@cache
def own_times(path: Path) -> list[float]:
    """Seconds of every frame of the file since its first, by a plain decode of the whole."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        assert stream.time_base is not None
        stream.thread_type = "AUTO"
        if path.stat().st_size > LARGE_BYTES:
            found = [packet.pts for packet in container.demux(stream) if packet.size]
        else:
            found = [frame.pts for frame in container.decode(stream)]
        ticks = sorted(at for at in found if at is not None)
        base = stream.time_base
    return [(at - ticks[0]) * base.numerator / base.denominator for at in ticks]


def index_of(path: Path) -> MediaIndex:
    with Video(path) as video:
        chunks = [c.index for c in video.chunks(video.plan(TEN_SECONDS), SMALL)]
        return video.media_index(chunks)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_real_video_is_covered_to_its_end_with_its_own_times(
    shared_clips: Path, name: str
) -> None:
    index, own = index_of(shared_clips / name), own_times(shared_clips / name)
    assert index.chunks[0].start == 0
    for one, other in zip(index.chunks, index.chunks[1:], strict=False):
        assert one.end == other.start
    assert index.chunks[-1].end == index.duration >= own[-1]
    # Frames that a cut leaves without the ones they refer to are announced, yet cannot be seen.
    assert index.duration - own[-1] < 0.5
    times = [seconds for chunk in index.chunks for seconds in chunk.times]
    assert set(times) <= set(own)
    assert times == sorted(set(times))
    assert max(b - a for a, b in zip(times, [*times[1:], own[-1]], strict=True)) < 2.5
    assert len(index.all_warnings) == (name in DAMAGED)
    assert DAMAGED.get(name, "") in "".join(index.all_warnings)


@pytest.mark.parametrize(("name", "size"), PHOTOS.items())
def test_a_real_photo_is_read(shared_clips: Path, name: str, size: tuple[int, int]) -> None:
    media, chunk = read_image(shared_clips / name)
    assert (media.height, media.width) == size
    assert chunk.pixels.shape == (1, *size, 3) and chunk.pixels.std() > 10

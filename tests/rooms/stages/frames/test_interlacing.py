"""Frames of interlaced video are shown without combs, by the bytes of FFmpeg's own filter, at the
times of the file, and frames that are not marked as interlaced stay as they are."""

import io
import re
import shutil
import subprocess
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

from artifacts.frame_fit import FrameFit
from artifacts.schema import Sampling
from flows.outputs.thumbnails import thumbnail
from stages.frames.reader import Reader, deinterlaced
from stages.frames.video import Video
from stages.sift.measures import SERIES
from stages.sift.run import SampledVideo
from tests.support.media import decoded_packets

PROGRAM = shutil.which("ffmpeg")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="makes media with the program ffmpeg")

HEIGHT, WIDTH, FRAMES = 144, 192, 50
SAMPLING = Sampling(chunk_seconds=0.8, fps=5, max_frames=9)
FIELDS = ("-flags", "+ilme+ildct", "-top", "1")
H264 = ("-c:v", "libx264", "-crf", "10", "-g", "12", *FIELDS, "-x264-params", "tff=1")
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "2", "-g", "12", "-bf", "2", *FIELDS)
UNMARKED = ("-c:v", "libx264", "-crf", "10", "-g", "12")
WAYS = {
    "h264.mp4": H264,
    "mpeg2.ts": MPEG2,
    "mpeg2.mp4": MPEG2,
    "uyvy.mov": ("-c:v", "rawvideo", "-pix_fmt", "uyvy422", *FIELDS),
    "ten_bits.mov": ("-c:v", "prores_ks", *FIELDS),
}
MARK = re.compile(rb"\x00\x00\x01\xb5[\x80-\x8f]...(?=(.))", re.DOTALL)
"""The start of an MPEG-2 picture coding extension up to the byte whose highest bit says that the
picture is not interlaced. Source: ITU-T H.262, 6.2.3.1."""
BWDIF = "bwdif=mode=send_frame:deint=interlaced"
COMBED = 15
"""A pixel that differs by more from both of the lines next to it, in the same direction, is
combed."""
FIRST = 1
"""Frames at the start for which the program (5.1) and PyAV (8.1) differ: alone, without a frame
before, versions of the filter predict the lines at the edges differently."""


def moving(at: int) -> NDArray[np.uint8]:
    """RGB at one fiftieth of a second: bars of many shades that move, over a floor that stands."""
    shades = np.random.default_rng(7).integers(16, 240, (WIDTH // 6, 3))
    row = np.roll(np.repeat(shades, 6, axis=0), 3 * at, axis=0).astype(np.uint8)
    image = np.repeat(row[None], HEIGHT, axis=0)
    image[HEIGHT * 3 // 4 :] = (40, 90, 60)
    return image


def woven(number: int) -> NDArray[np.uint8]:
    image = moving(2 * number)
    image[1::2] = moving(2 * number + 1)[1::2]
    return image


def write(path: Path, encoder: tuple[str, ...], draw: Callable[[int], Any] = woven) -> Path:
    pixels = b"".join(draw(number).tobytes() for number in range(FRAMES))
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", "25", "-i", "-")
    marks = ("-vf", "setfield=tff,format=yuv422p") if "+ilme+ildct" in encoder else ()
    depth = () if "-pix_fmt" in encoder or "prores_ks" in encoder else ("-pix_fmt", "yuv420p")
    program(*raw, *marks, *depth, *encoder, str(path), input=pixels)
    return path


def program(*words: str, input: bytes | None = None) -> bytes:
    assert PROGRAM is not None
    command = [PROGRAM, "-v", "error", "-y", *words]
    return subprocess.run(command, input=input, capture_output=True, check=True).stdout


def filtered(path: Path, form: str, filters: str = BWDIF) -> list[bytes]:
    """The bytes of all frames after a pass of the program over the whole file."""
    words = ("-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", form, "-")
    found = program("-i", str(path), "-vf", filters, *words)
    size = len(found) // FRAMES
    return [found[at : at + size] for at in range(0, len(found), size)]


def bytes_of(frame: VideoFrame) -> bytes:
    lines = []
    for plane, part in zip(frame.planes, frame.format.components, strict=True):
        rows = np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, plane.line_size)
        lines.append(rows[:, : plane.width * (-(-part.bits // 8))].tobytes())
    return b"".join(lines)


def read(path: Path, numbers: range, **options: Any) -> dict[int, VideoFrame]:
    """The frames of these numbers, and no other is asked for."""
    reader = Reader(path, threads=2, **options)
    pts = reader.timeline.pts
    reader.request(array("q", pts[numbers].tolist()))
    found = {at: reader.at(int(pts[at]), int(pts[at]), int(pts[at]) + 1) for at in numbers}
    reader.close()
    return {at: each[1] for at, each in found.items() if each is not None}


def combed(pixels: NDArray[Any]) -> float:
    """Percent of combed pixels of images [count, height, width, 3]."""
    grey = pixels.astype(int).mean(axis=-1)
    up, down = (grey[:, 1:-1] - grey[:, at : at + HEIGHT - 2] for at in (0, 2))
    combs = (up * down > 0) & (np.minimum(abs(up), abs(down)) > COMBED)
    return round(100 * float(combs.mean()), 2)


def sampled(path: Path, sampling: Sampling = SAMPLING, **options: Any) -> Any:
    """Pixels and times of the frames that a model gets."""
    with Video(path, threads=2, **options) as video:
        if sampling.shots:
            chunks = list(video.shots(sampling, FrameFit()))
        else:
            chunks = list(video.chunks(video.plan(sampling), FrameFit()))
    times = [time for chunk in chunks for time in chunk.index.times]
    return np.concatenate([chunk.pixels for chunk in chunks]), times


@pytest.mark.in_turn
@pytest.mark.parametrize("name", WAYS)
def test_frames_of_interlaced_video_are_not_combed_and_keep_their_times(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / name, WAYS[name])
    (pixels, times), (raw, raw_times) = sampled(path), sampled(path, deinterlace=False)
    assert combed(raw) > 2 and combed(pixels) <= 0.1
    seconds = [at / 25 for at in range(FRAMES)]
    assert times == raw_times == pytest.approx([seconds[at] for at in range(0, FRAMES, 5)])
    true = np.stack([moving(2 * at) for at in range(0, FRAMES, 5)]).astype(int)
    # The middle of the picture: at the sides the bars come from nowhere.
    away = [float(np.abs(each - true)[:, :, 48:-48].mean()) for each in (pixels, raw)]
    assert away[0] < away[1]


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [range(FRAMES), range(0, FRAMES, 7), range(11, FRAMES, 13)])
@pytest.mark.parametrize("name", WAYS)
def test_a_frame_has_the_bytes_of_the_whole_pass(tmp_path: Path, name: str, numbers: range) -> None:
    path = write(tmp_path / name, WAYS[name])
    found = read(path, numbers)
    expected = filtered(path, next(iter(found.values())).format.name)
    assert list(found) == list(numbers) and len(expected) == FRAMES
    other = [at for at in numbers if at >= FIRST and bytes_of(found[at]) != expected[at]]
    assert not other, f"of {len(found)} frames, {other} have other bytes"


def marked_here(path: Path, to: Path, interlaced: Callable[[int], bool]) -> Path:
    """Copy an MPEG-2 file with the pictures, in order of decoding, marked anew."""
    data = bytearray(path.read_bytes())
    for number, match in enumerate(MARK.finditer(bytes(data))):
        data[match.end()] = data[match.end()] & 0x7F | (0 if interlaced(number) else 0x80)
    to.write_bytes(data)
    return to


def marks(path: Path) -> list[bool]:
    with av.open(str(path)) as container:
        return [frame.interlaced_frame for frame in container.decode(video=0)]


def test_unmarked_frames_between_marked_ones_stay_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "all.mp4", MPEG2)
    mixed = marked_here(path, tmp_path / "mixed.mp4", lambda at: at % 5 not in (2, 3))
    marked = marks(mixed)
    assert marked[0] and 10 < sum(marked) < 40
    for numbers in (range(FRAMES), range(2, FRAMES, 9)):
        found, raw = read(mixed, numbers), read(mixed, numbers, deinterlace=False)
        expected = filtered(mixed, "yuv420p")
        for at in numbers:
            if not marked[at]:
                assert bytes_of(found[at]) == bytes_of(raw[at])
            if at >= FIRST:
                assert bytes_of(found[at]) == expected[at], at


def test_a_marked_frame_of_a_file_that_begins_unmarked_is_filtered_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "all.mp4", MPEG2)
    late = marked_here(path, tmp_path / "late.mp4", lambda at: at > 2)
    marked = marks(late)
    assert not marked[0] and sum(marked) > 40
    raw = read(late, range(FRAMES), deinterlace=False)
    for numbers in (range(FRAMES), range(4, FRAMES, 11)):
        found = read(late, numbers)
        for at in numbers:
            alone = deinterlaced(raw[at]) if marked[at] else raw[at]
            assert bytes_of(found[at]) == bytes_of(alone)
    shown, combs = (
        np.stack([each[at].to_ndarray(format="rgb24") for at in numbers]) for each in (found, raw)
    )
    # Without the frames around it, some lines at edges that stand are wrong.
    assert combed(combs) > 2 and combed(shown) <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("draw", [woven, lambda number: moving(2 * number)])
def test_unmarked_video_keeps_its_bytes_and_decodes_no_more(
    tmp_path: Path, draw: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mp4", UNMARKED, draw)
    expected = filtered(path, "yuv420p", "null")
    found = read(path, range(FRAMES))
    assert [bytes_of(each) for each in found.values()] == expected
    packets = decoded_packets(monkeypatch)
    sampled(path)
    count = len(packets)
    sampled(path, deinterlace=False)
    assert len(packets) == 2 * count


def test_off_leaves_frames_as_they_are_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", H264)
    found = read(path, range(FRAMES), deinterlace=False)
    assert [bytes_of(each) for each in found.values()] == filtered(path, "yuv420p", "null")


def test_shots_thumbnails_and_marks_see_no_combs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", H264)
    shots = Sampling(chunk_seconds=30, shots=True, fps=5, max_frames=32)
    pixels, _ = sampled(path, shots)
    assert combed(sampled(path, shots, deinterlace=False)[0]) > 2 and combed(pixels) <= 0.1
    whole = {at: each.to_ndarray(format="rgb24") for at, each in read(path, range(FRAMES)).items()}
    for at in (0, 13, 24):  # 24 is a keyframe
        jpeg = thumbnail(path, at / 25, side=WIDTH)
        assert jpeg is not None
        shown = np.asarray(Image.open(io.BytesIO(jpeg)))[None]
        assert combed(shown) < 0.5, f"frame {at}"
        assert np.abs(shown[0].astype(int) - whole[at]).mean() < 8
    with SampledVideo(path, threads=1) as video:
        ((_, marked),) = video.sampled([0])
    plain = tmp_path / "plain.mkv"
    program("-i", str(path), "-vf", BWDIF, "-c:v", "ffv1", str(plain))
    with SampledVideo(plain, threads=1) as video:
        ((_, expected),) = video.sampled([0])
    at = SERIES.index("sharpness")
    assert marked.series[0, at] == pytest.approx(expected.series[0, at], rel=0.01)
    for look, other in zip(marked.looks[1:], expected.looks[1:], strict=True):
        assert np.array_equal(look.thumb, other.thumb)


def test_a_frame_that_the_filter_does_not_take_stays_as_it_is(tmp_path: Path) -> None:
    frames = [*read(write(tmp_path / "a.mp4", H264), range(3), deinterlace=False).values()]
    tiny = [frame.reformat(width=2, height=2) for frame in frames]
    assert deinterlaced(tiny[1], tiny[0], tiny[2]) is tiny[1]
    # A frame of another size or format next to it does not count.
    others = (frames[0].reformat(width=64, height=48), frames[2].reformat(format="yuv444p"))
    made = deinterlaced(frames[1], *others)
    assert bytes_of(made) == bytes_of(deinterlaced(frames[1]))


@pytest.mark.in_turn
@pytest.mark.parametrize("form", ["nv12", "p010le", "uyvy422", "gray10le", "bgra", "rgb48le"])
def test_a_converted_frame_keeps_its_colours(tmp_path: Path, form: str) -> None:
    frames = [*read(write(tmp_path / "a.mp4", H264), range(3), deinterlace=False).values()]
    made = []
    for frame in frames:
        each = frame.reformat(format=form)
        each.color_trc, each.color_primaries = 16, 9
        if not each.format.is_rgb and form != "gray10le":
            each.colorspace, each.color_range = 9, 2
        made.append(each)
    shown = deinterlaced(made[1], made[0], made[2])
    assert not shown.interlaced_frame and shown is not made[1]
    assert (shown.color_trc, shown.color_primaries) == (16, 9)
    if not shown.format.is_rgb:
        assert (shown.colorspace, shown.color_range) == (made[1].colorspace, made[1].color_range)
    one, other = (each.to_ndarray(format="rgb24").mean() for each in (shown, made[1]))
    assert abs(one - other) < 1.5

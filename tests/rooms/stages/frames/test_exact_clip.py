"""An exact clip shows the frames of its span, and nothing else, to every reader."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from stages.frames import cut as exact_clip
from stages.frames.cut import ExactCutter
from stages.frames.frame_converter import FrameConverter, shown_size
from stages.frames.timeline import CUT_OFF
from stages.frames.video import Video
from tests.support.media import decode_plainly, write_video

OPEN = {"bf": "3", "x264-params": "open-gop=1:scenecut=0"}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "B-frames": ("a.mp4", {"gop": 20, "options": {"bf": "3"}, "audio": True}),
    "open groups": ("a.mkv", {"options": OPEN}),
    "one keyframe": ("a.mp4", {"gop": 500}),
    "mpegts": ("a.ts", {"gop": 25}),
    "flv": ("a.flv", {"gop": 25}),
    "vp8": ("a.webm", {"codec": "libvpx", "gop": 60}),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "gop": 60}),
    "av1": ("a.mp4", {"codec": "libsvtav1"}),
    "mpeg4": ("a.avi", {"codec": "mpeg4", "gop": 12}),
    "mpeg2": ("a.mpg", {"codec": "mpeg2video", "gop": 12}),
    "mjpeg": ("a.mov", {"codec": "mjpeg"}),
    "wmv": ("a.wmv", {"codec": "wmv2", "gop": 10}),
    "23.976": ("a.mp4", {"time_base": Fraction(1001, 24000), "gop": 30}),
    "29.97": ("a.mkv", {"time_base": Fraction(1001, 30000), "gop": 30}),
}


def shades(index: int, height: int, width: int) -> NDArray[np.uint8]:
    """A smooth picture of all colours, that moves; 4:2:0 loses little of it."""
    y, x = np.mgrid[0:height, 0:width]
    parts = 20 + 200 * x / width, 30 + 180 * y / height, 25 + 2 * index + 60 * (x + y) / width
    return np.stack(parts, -1).astype(np.uint8)


def cut(path: Path, folder: Path, spans: Sequence[tuple[float, float]]) -> list[Path]:
    cutter = ExactCutter(path, spans)
    made = [cutter.cut(at, folder / f"{path.stem}-{at}") for at in range(len(spans))]
    cutter.close()
    return [folder / each["file"] for each in made]


def pixels(path: Path, form: str = "rgb24") -> list[NDArray[np.int64]]:
    with av.open(str(path)) as container:
        return [f.to_ndarray(format=form).astype(int) for f in container.decode(video=0)]


def near(
    found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]], levels: float = 4
) -> bool:
    """Whether there are as many frames, and each is the wanted one: others differ by far more."""
    pairs = zip(found, expected, strict=False)
    return len(found) == len(expected) and all(np.abs(a - b).mean() < levels for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_a_clip_shows_exactly_the_frames_of_its_span(tmp_path: Path, kind: str) -> None:
    name, options = SOURCES[kind]
    path = write_video(tmp_path / name, **{"ticks": range(100), "size": (64, 64), **options})
    frames = decode_plainly(path)
    zero, whole = frames[0].seconds, pixels(path)
    spans = [(zero + a, zero + b) for a, b in pairwise((0.0, 1.0, 2.0, frames[-1].seconds + 1))]
    for (start, end), made in zip(spans, cut(path, tmp_path, spans), strict=True):
        here = [at for at, f in enumerate(frames) if start - 1e-3 <= f.seconds < end - 1e-3]
        assert near(pixels(made), [whole[at] for at in here])
        shown = [f.seconds for f in decode_plainly(made)]
        expected = [frames[at].seconds - frames[here[0]].seconds for at in here]
        assert shown == pytest.approx(expected, abs=1.5e-3)
        with av.open(str(made)) as container:
            (stream,) = container.streams
            assert stream.frames == len(here), "the header counts the frames that are shown"
            assert stream.duration is not None and stream.time_base is not None
            step = (frames[-1].seconds - zero) / (len(frames) - 1)
            assert float(stream.duration * stream.time_base) == pytest.approx(
                expected[-1] + step, abs=step / 4
            )


@pytest.mark.skipif(not shutil.which("ffprobe"), reason="needs ffprobe")
def test_constant_rates_stay_and_no_edit_list_hides_a_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", ticks=range(90), time_base=Fraction(1001, 30000))
    requests = ["ffprobe", "-v", "error", "-of", "json", "-count_frames", "-show_streams"]
    for made in cut(path, tmp_path, [(0.0, 1.0), (1.0, 2.0)]):
        printed = subprocess.run([*requests, made], capture_output=True, check=True).stdout
        (stream,) = json.loads(printed)["streams"]
        assert stream["r_frame_rate"] == stream["avg_frame_rate"] == "30000/1001"
        assert stream["nb_frames"] == stream["nb_read_frames"] == "30"
        assert stream["has_b_frames"] == 0 and stream["start_pts"] == 0
        assert b"elst" not in made.read_bytes()


def test_varying_times_are_kept_and_a_still_stands_for_its_span(tmp_path: Path) -> None:
    ticks = [0, 1, 2, 10, 11, 30, 31, 32, 120]  # nothing begins from 2 to 4 s
    path = write_video(tmp_path / "a.mkv", ticks=ticks, gop=4)
    first, still, last = cut(path, tmp_path, [(0.0, 2.0), (2.0, 4.0), (4.0, 5.0)])
    expected = [at / 30 for at in ticks[:8]]
    assert [f.seconds for f in decode_plainly(first)] == pytest.approx(expected, abs=1.5e-3)
    whole = pixels(path)
    assert near(pixels(still), [whole[7]]) and near(pixels(last), [whole[8]])
    with av.open(str(still)) as container:
        assert container.duration == pytest.approx(2e6, abs=1e4)


def test_a_slide_that_stays_over_a_border_is_in_both_clips(tmp_path: Path) -> None:
    """As a player shows them: pictures begin at 0, 1, 5.5 and 6 s."""
    path = write_video(tmp_path / "a.mkv", ticks=[0, 30, 165, 180], gop=1)
    first, second = cut(path, tmp_path, [(0.0, 3.0), (3.0, 6.0)])
    whole = pixels(path)
    for clip, shown, times in ((first, whole[:2], [0, 1]), (second, whole[1:3], [0, 2.5])):
        assert near(pixels(clip), shown)
        assert [f.seconds for f in decode_plainly(clip)] == pytest.approx(times, abs=1e-3)
        with av.open(str(clip)) as container:
            assert container.duration == pytest.approx(3e6, abs=1e4)


def test_a_slide_alone_stands_for_its_span_whatever_the_mean_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", ticks=[0, 100, 190], gop=1)
    (still,) = cut(path, tmp_path, [(3.5, 5.5)])
    with av.open(str(still)) as container:
        assert container.duration == pytest.approx(2e6, abs=1e3)


def test_packets_that_are_exactly_those_of_the_span_are_encoded_as_well(tmp_path: Path) -> None:
    options = {"bf": "3", "sc_threshold": "0"}
    path = write_video(tmp_path / "a.mp4", ticks=range(90), gop=30, options=options)
    whole = pixels(path)
    for at, made in enumerate(cut(path, tmp_path, [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)])):
        assert near(pixels(made), whole[30 * at : 30 * at + 30])
        assert b"elst" not in made.read_bytes(), "its own frames are in the order of the file"


def noise(index: int, height: int, width: int) -> NDArray[np.uint8]:
    """Grain over a picture that moves: the encoder has much to decide."""
    grain = np.random.default_rng(index).integers(-25, 25, (height, width, 3))
    return (shades(index, height, width) + grain).clip(0, 255).astype(np.uint8)


def test_bytes_do_not_depend_on_what_the_processor_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: Any = {"codec": "ffv1", "size": (180, 320), "draw": noise}
    path = write_video(tmp_path / "a.mkv", ticks=range(40), **drawn)
    (tmp_path / "sse2").mkdir()
    (made,) = cut(path, tmp_path, [(0.2, 1.2)])
    monkeypatch.setattr(exact_clip, "X264", f"{exact_clip.X264}:asm=sse2")
    (plain,) = cut(path, tmp_path / "sse2", [(0.2, 1.2)])
    assert plain.read_bytes() == made.read_bytes()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("turned", {"rotation": 90}),
        ("odd", {"size": (47, 63), "pixel_format": "yuv444p"}),
        ("full range", {"pixel_format": "yuvj420p"}),
        ("10 bit", {"pixel_format": "yuv420p10le"}),
        ("4:4:4", {"pixel_format": "yuv444p"}),
        ("rgb", {"codec": "libx264rgb", "pixel_format": "rgb24"}),
    ],
)
def test_a_clip_looks_as_the_model_saw_it_to_readers_that_know_less(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    """A reader that neither turns nor converts anything but the planes that it gets."""
    path = write_video(tmp_path / "a.mp4", ticks=range(30), gop=10, draw=shades, **options)
    with av.open(str(path)) as container:
        frames = [*container.decode(video=0)]
    size = shown_size(frames[0], None)
    converter = FrameConverter(frames[0], size)
    (made,) = cut(path, tmp_path, [(0.3, 0.8)])
    with av.open(str(made)) as container:
        found = [*container.decode(video=0)]
    height, width = (side // 2 * 2 for side in size)
    assert len(found) == 15 and (found[0].height, found[0].width) == (height, width)
    assert found[0].format.name in ("yuv420p", "yuvj420p") and found[0].rotation == 0
    for frame, source in zip(found, frames[9:24], strict=True):
        shown = FrameConverter(frame, (height // 2, width // 2)).convert(frame).astype(int)
        seen = converter.convert(source)[:height, :width]
        small = FrameConverter(_as_frame(seen), (height // 2, width // 2)).convert(_as_frame(seen))
        assert np.abs(shown - small).mean() < 2.5


def _as_frame(image: NDArray[np.uint8]) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg program is not installed")
def test_a_file_that_ends_within_a_frame_ends_with_the_frame_before(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.mp4", tmp_path / "a.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=s=176x144:r=30:d=4"]
    codec = ["-c:v", "libx264", "-bf", "2", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    subprocess.run(["ffmpeg", "-v", "error", *source, *codec, whole], check=True)
    with av.open(str(whole)) as container:
        found = [
            (p.pos or 0, p.size, p.pts * p.time_base)
            for p in container.demux(video=0)
            if p.pts is not None and p.time_base is not None
        ]
    times = [time for _, _, time in found]
    # All frames before it have been stored, and it is shown behind them.
    at = next(n for n in range(60, 90) if max(times[:n]) == Fraction(n - 1, 30) < times[n])
    path.write_bytes(whole.read_bytes()[: found[at][0] + found[at][1] // 2])
    with Video(path) as video:
        assert video.duration == pytest.approx(at / 30), f"ends at {video.duration}"
        assert [text[:32] for text in video.warnings()] == ["truncated: its frames end at 2.0"]
    path.write_bytes(whole.read_bytes()[: found[-1][0] + 1])
    with Video(path) as video:
        assert video.warnings() == (CUT_OFF,)
    path.write_bytes(whole.read_bytes()[: found[at][0] + found[at][1] // 2])
    (clip,) = cut(path, tmp_path, [(0.0, at / 30)])
    with av.open(str(clip)) as container:
        assert container.streams.video[0].average_rate == 30
        assert sum(1 for _ in container.decode(video=0)) == at

"""What the sift stage measures of one file: the same motion for every codec, and faults that are
some."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

from artifacts.disk.stamps import stamp_of
from artifacts.records.store import FolderStore
from flows.commands.sift.marks import medium_marks
from stages.frames.job import FramesItem
from stages.sift import SiftJob
from stages.sift.measures import is_plain
from stages.sift.run import SampledVideo, image_marks, joined, run
from tests.support.builders.planted import texture
from tests.support.waves import told_by

SIZE = (240, 136)
CODECS = {
    "libx264": ".mp4", "mpeg4": ".mp4", "mpeg2video": ".mpg", "libvpx-vp9": ".webm",
    "libx265": ".mp4",
}  # fmt: skip
"""Codec → container; the first two export motion vectors, which nothing may depend on."""


def write(path: Path, frames: Sequence[NDArray[np.uint8]], codec: str, rate: int) -> Path:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt, stream.bit_rate = "yuv420p", 1_000_000
        for pixels in frames:
            container.mux(stream.encode(VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def pan(speed: float, rate: int, seconds: float = 3.0) -> list[NDArray[np.uint8]]:
    """Frames of a picture that moves by so many of its lengths per second."""
    draw, whole = np.random.default_rng(1), Image.new("RGB", (1024, 576))
    for count in (8, 32, 128):  # shapes of several sizes
        noise = draw.integers(0, 256, (count, 2 * count, 3), np.uint8)
        layer = Image.fromarray(noise).resize(whole.size, Image.Resampling.BICUBIC)
        whole = Image.blend(layer, whole, 0.5)
    found = []
    for number in range(int(rate * seconds)):
        left = round(20 + speed * SIZE[0] * number / rate)
        found.append(np.asarray(whole.crop((left, 100, left + SIZE[0], 100 + SIZE[1]))))
    return found


def motion(path: Path) -> float:
    with SampledVideo(path, threads=1) as video:
        parts = [part for _, part in video.sampled(range(video.parts))]
        found: float = medium_marks(joined(parts, video.meta(), path))["motion"]
        return found


@pytest.mark.in_turn
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_has_the_motion_of_the_picture(codec: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"pan{CODECS[codec]}", pan(0.1, 24), codec, 24)
    assert motion(path) == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize(("speed", "rate"), [(0.02, 24), (0.1, 4), (0.25, 24), (0.25, 4)])
def test_motion_does_not_depend_on_the_frame_rate(speed: float, rate: int, tmp_path: Path) -> None:
    path = write(tmp_path / "pan.mp4", pan(speed, rate), "libx264", rate)
    assert motion(path) == pytest.approx(speed, rel=0.3)


def test_a_cut_is_no_motion(tmp_path: Path) -> None:
    one, other = pan(0, 24)[:1] * 60, [np.flip(pan(0, 24)[0])] * 60
    assert motion(write(tmp_path / "cut.mp4", [*one, *other], "libx264", 24)) < 0.005


def test_a_picture_of_several_has_no_fault(tmp_path: Path) -> None:
    several = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green")]
    for name in ("a.webp", "a.png"):
        several[0].save(tmp_path / name, save_all=True, append_images=several[1:])
        assert image_marks(tmp_path / name).meta["faults"] == 0
    several[0].resize((640, 480)).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    assert image_marks(tmp_path / "cut.jpg").meta["faults"] == 1


def test_a_picture_of_fractions_is_not_black(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(48, 64)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    marks = medium_marks(image_marks(tmp_path / "a.tif"))
    assert marks["black"] == 0 and marks["exposure"] == pytest.approx(0.5, abs=0.02)
    Image.fromarray(ramp * 60_000).save(tmp_path / "b.tif")
    marks = medium_marks(image_marks(tmp_path / "b.tif"))
    assert marks["black"] == 0 and marks["exposure"] == pytest.approx(0.46, abs=0.02)


def test_a_picture_of_one_bit_is_said_to_be(tmp_path: Path) -> None:
    grey = Image.fromarray(texture(np.random.default_rng(2))).convert("L")
    grey.save(tmp_path / "grey.png")
    grey.convert("1").save(tmp_path / "bit.png")
    found = [medium_marks(image_marks(tmp_path / n))["bilevel"] for n in ("grey.png", "bit.png")]
    assert found == [0, 1]


@pytest.mark.parametrize("is_changed", [False, True])
def test_nothing_is_stored_of_a_video_that_has_changed(
    is_changed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.sift.run.PART", 2)  # so that there are parts to store
    video = write(tmp_path / "a.mp4", pan(0.1, 8), "mpeg4", 8)
    stamp, store = stamp_of(video), FolderStore(tmp_path / "store")
    if is_changed:
        os.utime(video, (1, 1))
    item = FramesItem(str(video), "ab" * 32, "video", None, stamp)
    job = SiftJob(store=str(tmp_path / "store"), namespace="cd" * 32, media=[item], workers=1)
    events = [event["event"] for event in told_by(run, asdict(job))]
    assert events[0] == "Total" and ("Failed" in events) == is_changed
    assert bool(list(store.list("marks"))) != is_changed


@pytest.mark.parametrize(
    ("ground", "share", "plain"),
    [(200, 0.4, False), (200, 0.6, True), (8, 0.6, False), (8, 0.95, True), (40, 0.6, True)],
)
def test_a_picture_is_plain_by_the_share_of_its_ground(
    ground: int, share: float, plain: bool
) -> None:
    """Of a dark picture more must be ground: a planet in the sky is no slide."""
    grey = np.full((240, 320), ground, np.uint8)
    half = round(120 * (1 - share))
    noise = np.random.default_rng(1).integers(0, 256, (2, half, 320), np.uint8)
    grey[:half], grey[240 - half :] = noise  # around the ground, which would else be black bars
    assert is_plain(grey) == plain

"""A frame of a video looks alike everywhere: turned as the file says and white where it is
transparent, for the model, in thumbnails, fingerprints, shots and clips."""

import io
from fractions import Fraction
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
from stages.frames.cut import ExactCutter
from stages.frames.video import Video
from stages.sift.measures import thumb_of
from stages.sift.run import SampledVideo, joined
from tests.support.media import picture, write_video

HEIGHT, WIDTH = 64, 96
SAMPLING = Sampling(chunk_seconds=9, fps=1, max_frames=9)
HIDDEN, OPAQUE, HALF = (0, 0, 255), (200, 30, 30), (0, 128, 0)


def transparent() -> NDArray[np.uint8]:
    """RGBA: hidden blue above left, green that is half transparent above right, opaque red."""
    pixels = np.full((HEIGHT, WIDTH, 4), (*OPAQUE, 255), np.uint8)
    pixels[:32, :48] = (*HIDDEN, 0)
    pixels[:32, 48:] = (*HALF, 128)
    return pixels


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = rgba[..., 3:] / 255
    flat: NDArray[np.uint8] = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return flat


def write(
    path: Path, codec: str, pixel_format: str, *drawn: NDArray[np.uint8], **options: str
) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixel_format
        if codec.startswith("libvpx"):
            stream.metadata["alpha_mode"] = "1"
        for number, rgba in enumerate(drawn):
            frame = VideoFrame.from_ndarray(rgba, format="rgba")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def model_sees(path: Path) -> NDArray[np.uint8]:
    with Video(path, threads=1) as video:
        (chunk,) = video.chunks(video.plan(SAMPLING), FrameFit())
    pixels: NDArray[np.uint8] = chunk.pixels[0]
    return pixels


def person_sees(path: Path) -> NDArray[np.uint8]:
    jpeg = thumbnail(path, 0.0)
    assert jpeg is not None
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def fingerprint(path: Path) -> NDArray[Any]:
    with SampledVideo(path, threads=1) as video:
        parts = [part for _, part in video.sampled(range(video.parts))]
        middle: NDArray[Any] = joined(parts, video.meta(), path).looks[2].thumb.astype(int)
        return middle


def fingerprint_of(pixels: NDArray[np.uint8]) -> NDArray[Any]:
    return thumb_of(np.asarray(Image.fromarray(pixels).convert("L"))).astype(int)


def assert_seen_everywhere(path: Path, upright: NDArray[np.uint8], folder: Path) -> None:
    cutter = ExactCutter(path, [(0.0, 0.4)])
    clip = cutter.cut(0, folder / "clip")
    cutter.close()
    for where, seen in (
        ("model", model_sees(path)),
        ("thumbnail", person_sees(path)),
        ("clip", model_sees(folder / clip["file"])),
    ):
        assert seen.shape == upright.shape, f"{where}: {seen.shape}"
        difference = np.abs(seen.astype(int) - upright).mean()
        assert difference < 12, f"{where}: {difference:.0f} levels from what was written"
    difference = np.abs(fingerprint(path) - fingerprint_of(upright)).mean()
    assert difference < 8, f"fingerprint: {difference:.0f} levels from what was written"


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "options"),
    [
        ("a.mov", "qtrle", "argb", {}),
        ("a.mov", "png", "rgba", {}),
        ("a.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
        ("a.mov", "rawvideo", "argb", {}),
        ("a.webm", "libvpx-vp9", "yuva420p", {"crf": "10", "b": "0", "auto-alt-ref": "0"}),
        ("a.webm", "libvpx", "yuva420p", {"crf": "4", "b": "2M", "auto-alt-ref": "0"}),
        ("a.apng", "apng", "rgba", {}),
        ("a.avi", "utvideo", "gbrap", {}),
        ("a.mkv", "ffv1", "yuva420p", {}),
    ],
)
def test_what_is_transparent_in_a_video_is_white_everywhere(
    tmp_path: Path, name: str, codec: str, pixel_format: str, options: dict[str, str]
) -> None:
    path = write(tmp_path / name, codec, pixel_format, *[transparent()] * 6, **options)
    assert_seen_everywhere(path, on_white(transparent()), tmp_path)


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_the_frames_of_a_transparent_webm_are_those_of_their_times(
    tmp_path: Path, codec: str
) -> None:
    options = {"b": "2M", "auto-alt-ref": "0", "g": "10", "deadline": "realtime", "cpu-used": "8"}
    drawn = [transparent() for _ in range(60)]
    for number, rgba in enumerate(drawn):
        rgba[32:, :, :3] = 4 * number
    path = write(tmp_path / "a.webm", codec, "yuva420p", *drawn, **options)
    with Video(path) as video:
        plans = video.plan(Sampling(chunk_seconds=3, fps=0.7, max_frames=9))
        (chunk,) = video.chunks([plans[1]], FrameFit())
    assert chunk.index.times[0] == 3.0 and len(chunk.index.times) == 3
    for seconds, pixels in zip(chunk.index.times, chunk.pixels, strict=True):
        assert abs(int(pixels[50, 50, 0]) - 40 * seconds) < 6
        assert pixels[10, 10].min() > 250


def test_an_alpha_mode_is_asked_for_before_another_decoder_is_taken(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.webm", codec="libvpx-vp9", size=(HEIGHT, WIDTH))
    with Video(path) as video:
        assert video._reader.decoder._codec.name == "vp9"


def test_a_fourth_byte_that_means_nothing_hides_nothing(tmp_path: Path) -> None:
    pixels = transparent()
    pixels[..., 3] = 0
    path = write(tmp_path / "a.avi", "rawvideo", "bgra", *[pixels] * 6)
    np.testing.assert_array_equal(model_sees(path), pixels[..., :3])


SHOWN: list[tuple[dict[str, Any], NDArray[np.uint8]]] = [
    ({"rotation": 90}, np.rot90(picture(0), 1)),
    ({"rotation": 180}, picture(0)[::-1, ::-1]),
    ({"rotation": -90}, np.rot90(picture(0), 3)),
    ({"shown": (-1, 0, 0, 1)}, picture(0)[:, ::-1]),
    ({"shown": (0, 1, 1, 0)}, picture(0).swapaxes(0, 1)),
    ({"shown": (0, 0, 0, 0)}, picture(0)),  # some programs write no matrix
]


def still(index: int, height: int, width: int) -> NDArray[np.uint8]:
    return picture(0, height, width)


@pytest.mark.parametrize(("how", "upright"), SHOWN)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_turned_video_is_upright_everywhere(
    tmp_path: Path, name: str, how: dict[str, Any], upright: NDArray[np.uint8]
) -> None:
    path = write_video(tmp_path / name, draw=still, **how)
    assert_seen_everywhere(path, np.ascontiguousarray(upright), tmp_path)


def test_a_clip_and_its_upside_down_twin_are_no_copies(tmp_path: Path) -> None:
    plain = write_video(tmp_path / "a.mp4", draw=still)
    turned = write_video(tmp_path / "b.mp4", draw=still, rotation=180)
    difference = np.abs(fingerprint(plain) - fingerprint(turned)).mean()
    assert difference > 20, f"their fingerprints differ by {difference:.1f} levels"


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_photo_named_as_a_video_is_upright(tmp_path: Path, orientation: int) -> None:
    upright = picture(0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(upright, {3: 2, 6: 1, 8: 3}[orientation])
    image = Image.fromarray(np.ascontiguousarray(stored))
    image.save(tmp_path / "a.mp4", "JPEG", exif=exif, quality=97)
    seen = model_sees(tmp_path / "a.mp4")
    assert seen.shape == upright.shape
    assert np.abs(seen.astype(int) - upright).mean() < 6


@pytest.mark.parametrize("name", ["decord_rot90.mov", "mpy_fire2.mp4"])
def test_a_real_turned_video_has_the_same_thumbnail_as_the_model_sees(
    shared_clips: Path, name: str
) -> None:
    with Video(shared_clips / name) as video:
        frame = next(iter(video.chunks(video.plan(SAMPLING)[:1], FrameFit()))).pixels[0]
    seen = person_sees(shared_clips / name)
    small = Image.fromarray(frame).resize(seen.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(np.asarray(small, int) - seen).mean() < 12

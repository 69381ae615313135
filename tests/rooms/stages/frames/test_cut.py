"""A file stands in a data set only where a reader that knows little shows what the model saw;
otherwise a copy does, which such a reader shows so."""

import io
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from artifacts.errors import EnvironmentFault
from artifacts.remote.finding import remote_file_at
from artifacts.remote.media_cache import copy_of
from stages.frames.cut import run
from stages.frames.image import read_image
from stages.frames.job import CutItem
from stages.frames.video import Video
from tests.support.media import spoil, write_png, write_video
from tests.support.named_colours import write
from tests.support.trainers import SHOWN, STILLS
from tests.support.waves import told_by
from tests.support.web import web_server


def shades() -> Image.Image:
    y, x = np.mgrid[0:60, 0:80]
    return Image.fromarray(np.stack([x * 3, y * 4, x + y], -1).astype(np.uint8))


def made(path: Path, kind: str, **more: Any) -> dict[str, Any]:
    """What the stage says of a whole file."""
    end = more.pop("end", 0.0)
    cut = CutItem(str(path), "made", 0.0, end, kind=kind, whole=True, **more)
    message = told_by(run, {"folder": str(path.parent), "cuts": [[*cut]]})
    return next(event["made"] for event in message if "made" in event)


def _turned(number: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        exif = Image.Exif()
        exif[274] = number
        shades().save(path, exif=exif, quality=95)

    return write


def _alpha(path: Path) -> None:
    image = shades().convert("RGBA")
    image.putalpha(Image.fromarray(np.full((60, 80), 120, np.uint8)))
    image.save(path, lossless=True)


def _moving(path: Path) -> None:
    shades().save(path, save_all=True, append_images=[shades().rotate(90)])


def _wide(path: Path) -> None:
    write(path, np.asarray(shades()), 13, 12)


def _deep(path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 4800).astype(np.uint16).reshape(60, 80)).save(path)


OTHERS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    **{f"turned {n}": (f"a{n}.jpg", _turned(n), "turned") for n in range(2, 9)},
    **{f"turned png {n}": (f"a{n}.png", _turned(n), "turned") for n in (3, 6)},
    **{f"turned tiff {n}": (f"a{n}.tif", _turned(n), "turned") for n in (3, 6)},
    **{f"turned webp {n}": (f"a{n}.webp", _turned(n), "turned") for n in (3, 6)},
    "alpha": ("a.png", _alpha, "transparent"),
    "alpha webp": ("a.webp", _alpha, "transparent"),
    "moving": ("a.webp", _moving, "several images"),
    "deep": ("a.png", _deep, "16 bits"),
    "Display P3": ("a.png", _wide, "other colours"),
}


def seen(path: Path) -> NDArray[np.int64]:
    """The picture that the model sees."""
    found: NDArray[np.int64] = read_image(path)[1].pixels[0].astype(np.int64)
    return found


def opened(path: Path) -> NDArray[np.int64]:
    """The picture as kohya's and musubi's readers open it: `Image.open(path).convert("RGB")`."""
    return np.array(Image.open(path).convert("RGB"), dtype=np.int64)


@pytest.mark.parametrize("kind", OTHERS)
def test_a_picture_that_readers_show_otherwise_is_copied_as_the_model_saw_it(
    tmp_path: Path, kind: str
) -> None:
    name, save, why = OTHERS[kind]
    save(path := tmp_path / name)
    found = made(path, "image")
    assert (found["why"], found["plain"]) == (why, False)
    lossless = path.suffix in (".png", ".tif") or kind == "alpha webp"
    assert Path(found["file"]).suffix == (".png" if lossless else ".jpg")
    differing = np.abs(opened(tmp_path / found["file"]) - seen(path))
    assert differing.mean() <= (0 if lossless else 3)


def _of_48_bits(path: Path) -> None:
    """A PNG of 16 bits a channel, with an Exif block; Pillow writes none."""
    pixels, exif = np.asarray(shades()).astype(">u2") * 256 + 200, Image.Exif().tobytes()[6:]
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 80, 60, 16, 2, 0, 0, 0), b"eXIf": exif}
    write_png(path, {**chunks, b"IDAT": zlib.compress(lines)})


@pytest.mark.parametrize(
    ("name", "save"),
    [
        *((f"a.{each}", shades().save) for each in ("jpg", "png", "webp", "tif", "bmp", "ppm")),
        ("cmyk.jpg", shades().convert("CMYK").save),
        ("colours of 16 bits.png", _of_48_bits),
    ],
)
def test_a_plain_picture_stands_as_it_is_unless_a_reader_needs_a_copy(
    tmp_path: Path, name: str, save: Callable[[Path], None]
) -> None:
    save(path := tmp_path / name)
    assert made(path, "image") == {"why": "", "plain": True}
    for show in SHOWN.values() if path.suffix in STILLS else ():
        assert np.abs(show(path, "image")[0].astype(int) - seen(path)).max() == 0
    assert np.abs(opened(path) - seen(path)).max() == 0
    copy = made(path, "image", copied=True)
    assert copy["plain"] and np.abs(opened(tmp_path / copy["file"]) - seen(path)).mean() < 3


def _of_mode(mode: str) -> Callable[[Path], None]:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return lambda path: shades().convert(mode).save(path, icc_profile=profile)


def _with_exif(block: bytes) -> Callable[[Path], None]:
    return lambda path: shades().save(path, exif=block, quality=95)


def _of_space(number: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.ColorSpace] = number
    return exif.tobytes()


ENDED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "palette with a profile": ("a.png", _of_mode("P"), "other colours"),
    "bits with a profile": ("a.png", _of_mode("1"), "other colours"),
    "grey with a profile of colours": ("a.jpg", _of_mode("L"), "other colours"),
    "no Exif in its place": ("a.jpg", _with_exif(b"Exif\0\0nothing like it"), "damaged"),
    "no Exif in its place in a WebP": ("a.webp", _with_exif(b"Exif\0\0or this"), "damaged"),
    "another colour space in the Exif": ("a.jpg", _with_exif(_of_space(0xFFFF)), "other colours"),
}
"""What ends a reader, though the model saw a plain picture."""


@pytest.mark.parametrize("kind", ENDED)
def test_a_picture_that_ends_a_trainer_s_reader_is_copied(tmp_path: Path, kind: str) -> None:
    name, save, why = ENDED[kind]
    save(path := tmp_path / name)
    found = made(path, "image")
    shown = tmp_path / found.get("file", name)
    for reader, show in SHOWN.items():
        if reader != "ltx" or shown.suffix in STILLS:
            (image,) = show(shown, "image")
            assert np.abs(image.astype(int) - seen(path)).mean() < 3, reader
    assert found["why"] == why


def test_a_damaged_picture_enters_as_what_could_be_decoded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    shades().resize((400, 300)).save(buffer, "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue()[:-900])
    found = made(path, "image", damaged=True)
    assert (found["why"], found["file"]) == ("damaged", "made.jpg")
    assert np.abs(opened(tmp_path / "made.jpg") - seen(path)).mean() < 3
    gone = tmp_path / "none.jpg"
    gone.write_bytes(b"no picture")
    assert "error" in made(gone, "image")


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("a.mp4", {}, ""),
        ("a.avi", {"codec": "mpeg4"}, ""),
        ("a.mp4", {"rotation": 90}, "turned"),
        ("a.mp4", {"pixel_aspect": Fraction(4, 3)}, "pixels that are not square"),
        ("a.mp4", {"pixel_format": "yuv420p10le"}, "format yuv420p10le"),
        ("a.mkv", {}, "a frame count that is not what is shown"),
        ("a.ts", {}, "a frame count that is not what is shown"),
        ("a.webm", {"codec": "libvpx-vp9"}, "a frame count that is not what is shown"),
        ("a.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
         "a frame count that is not what is shown"),
    ],
)  # fmt: skip
def test_a_whole_video_stands_where_its_header_and_frames_are_what_is_shown(
    tmp_path: Path, name: str, options: dict[str, Any], why: str
) -> None:
    path = write_video(tmp_path / name, ticks=range(30), size=(64, 64), **options)
    found = made(path, "video", end=1.0)
    if not why:
        assert found == {"plain": True}
        return
    assert (found["why"], found["plain"], found["file"]) == (why, False, "made.mp4")
    assert made(tmp_path / "made.mp4", "video", end=1.0) == {"plain": True}, "a copy is plain"


def test_heic_stands_under_no_suffix(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "IMG_1.JPG"
    pillow_heif.from_pillow(shades()).save(tmp_path / "a.heic", quality=90)
    (tmp_path / "a.heic").rename(path)
    found = made(path, "image")
    assert (found["why"], found["file"]) == ("HEIC", "made.jpg")
    assert np.abs(opened(tmp_path / "made.jpg") - seen(path)).mean() < 3


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg program")
def test_a_file_of_two_videos_is_copied_as_the_one_that_was_seen(tmp_path: Path) -> None:
    red = ["-f", "lavfi", "-t", "1", "-i", "color=red:s=64x48:r=25"]
    blue = ["-f", "lavfi", "-t", "1", "-i", "color=blue:s=128x96:r=25"]
    path = tmp_path / "two.mp4"
    expected = ["-map", "0:v", "-map", "1:v", "-c:v", "libx264", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(["ffmpeg", "-v", "error", *red, *blue, *expected], check=True)
    found = made(path, "video", end=1.0)
    assert found["why"] == "several video streams"
    with Video(path) as video, av.open(str(tmp_path / found["file"])) as copy:
        stream = copy.streams.video[0]
        assert (stream.height, stream.width) == (video.height, video.width)


def test_a_reader_shows_the_copy_of_a_damaged_video_to_its_end(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", ticks=range(60), size=(96, 128), gop=60)
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat") + 4 + len(content) // 3
    content[at : at + 600] = bytes(600)
    path.write_bytes(content)
    found = made(path, "video", end=2.0, damaged=True)
    assert found["why"] in ("damaged", "a frame count that is not what is shown")
    with av.open(str(tmp_path / found["file"])) as copy:
        stream = copy.streams.video[0]
        assert len([*copy.decode(stream)]) == stream.frames > 0


def test_damage_that_no_frame_of_the_model_needed_does_not_reach_a_reader(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", codec="mpeg4", ticks=range(48), options={})
    path = spoil(whole, tmp_path / "a.mp4", which=lambda at: 20 <= at < 24)
    found = made(path, "video", end=1.6)  # captioned without a warning
    with av.open(str(tmp_path / found.get("file", "a.mp4"))) as copy:
        stream = copy.streams.video[0]
        assert sum(1 for _ in copy.decode(stream)) == stream.frames > 40
    assert (found["why"], found["plain"]) == ("damaged", False)


def _profiled(image: Image.Image, path: Path, **more: Any) -> None:
    """Save a picture whose profile comes before its pixels in the file."""
    write(path.with_suffix(".png"), np.asarray(image), 13, 12)
    with Image.open(path.with_suffix(".png")) as wide:
        profile = wide.info.get("icc_profile") or b"\0" * 500
    image.save(path, icc_profile=profile, **more)


@pytest.mark.parametrize(
    ("name", "more", "copy"),
    [
        ("a.webp", {"lossless": True}, "made.png"),
        ("a.webp", {"quality": 80}, "made.jpg"),
        ("a.jpg", {"format": "PNG"}, "made.png"),
        ("a.jpg", {"format": "WEBP", "lossless": True}, "made.png"),
        ("a.png", {"format": "JPEG"}, "made.jpg"),
        ("a.jp2", {"format": "JPEG2000"}, "made.png"),
    ],
)
def test_the_content_of_a_picture_decides_whether_its_copy_loses_anything(
    tmp_path: Path, name: str, more: dict[str, Any], copy: str
) -> None:
    _profiled(shades(), tmp_path / name, **more)
    assert made(tmp_path / name, "image", copied=True)["file"] == copy


def test_a_moving_webp_without_loss_is_copied_without_loss(tmp_path: Path) -> None:
    frames = [shades(), shades().rotate(90)]
    path = tmp_path / "a.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True, exif=b"e" * 99)
    assert made(path, "image")["file"] == "made.png"
    frames[0].save(path, save_all=True, append_images=frames[1:], quality=80)
    assert made(path, "image")["file"] == "made.jpg"


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the ffmpeg program is not installed")
def test_a_video_whose_left_columns_some_readers_cut_becomes_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=s=320x192:r=25:d=1"]
    codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-bf", "0"]
    crop = ["-bsf:v", "h264_metadata=crop_left=8:crop_top=8"]
    subprocess.run(["ffmpeg", "-v", "error", *source, *codec, *crop, path], check=True)
    message = made(path, "video", end=1.0)
    assert message["why"] == "columns that readers cut" and not message["plain"]
    with av.open(str(tmp_path / message["file"])) as clip:
        shown = clip.streams.video[0].codec_context.width
        assert {frame.width for frame in clip.decode(video=0)} == {shown}


def test_a_copy_of_a_remote_file_that_made_room_for_others_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_NEARBY", str(tmp_path / "nearby"))
    (tmp_path / "there").mkdir()
    shades().save(tmp_path / "there" / "a.png")
    with web_server(tmp_path / "there") as web:
        path = copy_of(remote_file_at(f"{web.address}/a.png"))
        assert not path.exists()
        assert made(path, "image") == {"why": "", "plain": True}
        assert path.exists()


def test_the_stage_notes_what_became_of_each_clip(tmp_path: Path) -> None:
    good = write_video(tmp_path / "good.mp4", ticks=range(60), gop=10)
    (tmp_path / "half.mp4").write_bytes(good.read_bytes()[:900])
    spans = [(good, "a", 0.0, 1.0), (good, "b", 1.0, 2.0), (tmp_path / "half.mp4", "c", 0.0, 1.0)]
    cuts = [[str(path), *more] for path, *more in spans]
    messages = told_by(run, {"folder": str(tmp_path), "cuts": cuts})
    noted = [event for event in messages if event["event"] == "StageNotes"]
    notes = {name: value for event in noted for name, value in event.items()}
    assert (notes["a"], notes["b"]) == ({"file": "a.mp4"}, {"file": "b.mp4"})
    assert (tmp_path / "b.mp4").exists()
    assert "no moov atom" in notes["c"]["error"] and str(tmp_path) not in notes["c"]["error"]
    assert [key for e in messages if e["event"] == "Answered" for key in e["keys"]] == ["a", "b"]


def test_a_file_that_is_gone_is_no_fault_of_its_own(tmp_path: Path) -> None:
    gone = [str(tmp_path / "gone.mp4"), "a", 0.0, 1.0]
    with pytest.raises(EnvironmentFault, match="does not exist"):
        told_by(run, {"folder": str(tmp_path), "cuts": [gone]})

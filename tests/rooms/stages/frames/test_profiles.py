"""Pictures with a colour profile, and pictures and videos that name wide primaries, are seen in
sRGB, as lcms converts them."""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from artifacts.frame_fit import FrameFit
from artifacts.schema import Sampling
from stages.frames.image import read_image
from stages.frames.video import Video
from tests.support.media import picture
from tests.support.named_colours import with_cicp, write

SIZE = (60, 90)
D65 = (0.3127, 0.3290)
PRIMARIES = {
    "Display P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    "Adobe RGB": ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)),
    "sRGB": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    "BT.2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
}


def s15(value: float) -> bytes:
    return round(value * 65536).to_bytes(4, "big", signed=True)


def profile(primaries: tuple[tuple[float, float], ...], gamma: float | None = 2.2) -> bytes:
    """An ICC profile of matrix and gamma (None: the curve of sRGB). Source: ICC.1:2010, 8.3."""
    white = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    matrix = columns * np.linalg.solve(columns, white)
    cone = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    d50 = np.array([0.9642, 1, 0.8249])
    adapted = np.linalg.inv(cone) @ np.diag((cone @ d50) / (cone @ white)) @ cone @ matrix
    if gamma is None:
        parameters = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        curve = b"para" + bytes(4) + b"\0\3\0\0" + b"".join(map(s15, parameters))
    else:
        curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big")
    curve += bytes(-len(curve) % 4)
    tags = {
        b"desc": b"desc" + bytes(4) + (2).to_bytes(4, "big") + b"a\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
        b"wtpt": b"XYZ " + bytes(4) + b"".join(map(s15, d50)),
        **{
            name + b"XYZ": b"XYZ " + bytes(4) + b"".join(map(s15, adapted[:, at]))
            for at, name in enumerate((b"r", b"g", b"b"))
        },
        **{name + b"TRC": curve for name in (b"r", b"g", b"b")},
    }
    at, table, content = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + (at + len(content)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        content += data + bytes(-len(data) % 4)
    head = (at + len(content)).to_bytes(4, "big") + b"lcms" + bytes.fromhex("02400000")
    head += b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + b"".join(map(s15, d50))
    return head + bytes(128 - len(head)) + len(tags).to_bytes(4, "big") + table + content


def by_lcms(image: Image.Image, icc: bytes) -> NDArray[np.int64]:
    made = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )  # fmt: skip
    return np.asarray(made).astype(int)


def saved(path: Path, image: Image.Image, icc: bytes) -> Image.Image:
    """Write a picture, and return it as Pillow reads it, without conversion to sRGB."""
    if path.suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    options = {"quality": 95} if path.suffix in (".jpg", ".heic", ".avif") else {}
    image.save(path, "HEIF" if path.suffix == ".heic" else None, icc_profile=icc, **options)
    plain = Image.open(path)
    plain.load()
    return plain


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".heic", ".avif"])
@pytest.mark.parametrize("name", ["Display P3", "Adobe RGB"])
def test_a_picture_is_converted_as_lcms_does(tmp_path: Path, name: str, suffix: str) -> None:
    icc, path = profile(PRIMARIES[name]), tmp_path / f"a{suffix}"
    plain = saved(path, Image.fromarray(picture(3, *SIZE)), icc)
    expected = by_lcms(plain, icc)
    index, chunk = read_image(path)
    assert np.abs(chunk.pixels[0].astype(int) - expected).max() <= 2
    away = np.abs(expected - np.asarray(plain.convert("RGB")).astype(int)).max()
    assert away > 10 and index.warnings == ()


def test_a_profile_of_srgb_changes_no_byte(tmp_path: Path) -> None:
    srgb = profile(PRIMARIES["sRGB"], None)
    plain = saved(tmp_path / "a.png", Image.fromarray(picture(3, *SIZE)), srgb)
    assert np.array_equal(read_image(tmp_path / "a.png")[1].pixels[0], np.asarray(plain))


@pytest.mark.parametrize("damage", [b"\0" * 200, b"none", b""])
def test_a_damaged_profile_is_ignored_with_a_warning(tmp_path: Path, damage: bytes) -> None:
    icc = damage or profile(PRIMARIES["Display P3"])[:150]
    plain = saved(tmp_path / "a.png", Image.fromarray(picture(3, *SIZE)), icc)
    index, chunk = read_image(tmp_path / "a.png")
    assert np.array_equal(chunk.pixels[0], np.asarray(plain))
    assert any("profile" in each for each in index.warnings)


def test_transparency_and_palettes_keep_their_profile(tmp_path: Path) -> None:
    icc = profile(PRIMARIES["Display P3"])
    rgba = np.dstack([picture(3, *SIZE), np.full(SIZE, 255, np.uint8)])
    rgba[:10, :, 3] = 0
    saved(tmp_path / "a.png", Image.fromarray(rgba), icc)
    pixels = read_image(tmp_path / "a.png")[1].pixels[0]
    assert (pixels[:10] == 255).all()
    expected = by_lcms(Image.fromarray(rgba[..., :3]), icc)
    assert np.abs(pixels[10:].astype(int) - expected[10:]).max() <= 2
    few = Image.fromarray(picture(3, *SIZE)).quantize(16)
    saved(tmp_path / "b.png", few, icc)
    expected = by_lcms(few.convert("RGB"), icc)
    assert np.abs(read_image(tmp_path / "b.png")[1].pixels[0].astype(int) - expected).max() <= 2


def test_a_profile_of_another_kind_of_picture_is_ignored(tmp_path: Path) -> None:
    grey = Image.fromarray(picture(3, *SIZE)).convert("L")
    saved(tmp_path / "a.png", grey, profile(PRIMARIES["Display P3"]))
    index, chunk = read_image(tmp_path / "a.png")
    assert np.array_equal(chunk.pixels[0][..., 0], np.asarray(grey))
    assert any("profile" in each for each in index.warnings)


NAMED = {"Display P3": (12, "smpte432"), "BT.2020": (9, "bt2020")}
"""Primaries → their number in ITU-T H.273, and their name in FFmpeg."""
CURVES = {1: "bt709", 13: "iec61966-2-1", 14: "bt2020-10"}


def wide_chart(primaries: str) -> tuple[Image.Image, NDArray[np.int64]]:
    """A picture in these primaries, and what lcms makes of it in sRGB."""
    chart = Image.fromarray(picture(3, *SIZE))
    return chart, by_lcms(chart, profile(PRIMARIES[primaries], None))


@pytest.mark.parametrize("suffix", [".png", ".avif", ".heic"])
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("primaries", NAMED)
def test_wide_primaries_that_a_picture_names_are_converted(
    tmp_path: Path, primaries: str, curve: int, suffix: str
) -> None:
    chart, expected = wide_chart(primaries)
    path = tmp_path / f"a{suffix}"
    write(path, np.asarray(chart), curve, NAMED[primaries][0])
    index, chunk = read_image(path)
    off = np.abs(chunk.pixels[0] - expected).mean()
    assert off < (2 if suffix == ".png" else 4), f"{off:.1f} levels"
    assert not index.warnings
    # A profile counts before what is named.
    if suffix == ".png":
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        file = io.BytesIO()
        chart.save(file, "PNG", icc_profile=srgb)
        path.write_bytes(with_cicp(file.getvalue(), curve, NAMED[primaries][0]))
        assert np.array_equal(read_image(path)[1].pixels[0], np.asarray(chart))


def test_grey_and_transparent_pictures_that_name_primaries_are_read(tmp_path: Path) -> None:
    chart, expected = wide_chart("Display P3")
    for mode in ("L", "P", "RGBA", "LA"):
        file = io.BytesIO()
        chart.convert(mode).save(file, "PNG")
        (tmp_path / "a.png").write_bytes(with_cicp(file.getvalue(), 13, 12))
        index, chunk = read_image(tmp_path / "a.png")
        grey = np.asarray(chart.convert("L").convert("RGB"))
        assert not index.warnings
        if mode in ("L", "LA"):
            assert np.array_equal(chunk.pixels[0], grey)
        elif mode == "RGBA":
            assert np.abs(chunk.pixels[0] - expected).max() <= 2


def video_of(path: Path, chart: Image.Image, primaries: str, curve: str, size: str) -> Path:
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("makes videos with the program ffmpeg")
    head = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "10", "-i", "-"]
    words = ["-vf", "scale=out_color_matrix=bt709,format=yuv444p10le", "-c:v", "libx265"]
    words += ["-x265-params", "lossless=1:log-level=none", "-colorspace", "bt709"]
    words += ["-color_primaries", primaries, "-color_trc", curve, str(path)]
    pixels = np.asarray(chart).tobytes() * 5
    subprocess.run([program, "-v", "error", *head, *words], input=pixels, check=True)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("curve", ["bt709", "bt2020-10", "unknown"])
@pytest.mark.parametrize("primaries", NAMED)
def test_wide_primaries_that_a_video_names_are_converted(
    tmp_path: Path, primaries: str, curve: str
) -> None:
    chart, expected = wide_chart(primaries)
    path = video_of(tmp_path / "a.mp4", chart, NAMED[primaries][1], curve, "90x60")
    with Video(path) as video:
        plans = video.plan(Sampling(chunk_seconds=9, fps=1, max_frames=9))
        (chunk,) = video.chunks(plans, FrameFit())
        warnings = video.warnings()
    unchanged = curve == "unknown" and primaries == "BT.2020"
    off = np.abs(chunk.pixels[0] - (np.asarray(chart).astype(int) if unchanged else expected))
    assert off.mean() < 2, f"{off.mean():.1f} levels"
    assert any("BT.2020" in each for each in warnings) == unchanged


def test_a_video_of_usual_primaries_keeps_its_bytes(tmp_path: Path) -> None:
    chart, _ = wide_chart("BT.2020")
    found = []
    for at, name in enumerate(("bt709", "unknown")):
        path = video_of(tmp_path / f"{at}.mp4", chart, name, "bt709", "90x60")
        with Video(path) as video:
            plans = video.plan(Sampling(chunk_seconds=9, fps=1, max_frames=9))
            found.append(next(video.chunks(plans, FrameFit())).pixels)
    assert np.array_equal(found[0], found[1]) and np.abs(found[0][0].astype(int) - chart).mean() < 1

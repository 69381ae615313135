"""Pictures with a colour profile are seen in sRGB, as lcms converts them."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from stages.frames.image import read_image
from tests.support.media import picture

SIZE = (60, 90)
D65 = (0.3127, 0.3290)
PRIMARIES = {
    "Display P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    "Adobe RGB": ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)),
    "sRGB": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
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
    wanted = by_lcms(plain, icc)
    index, chunk = read_image(path)
    assert np.abs(chunk.pixels[0].astype(int) - wanted).max() <= 2
    away = np.abs(wanted - np.asarray(plain.convert("RGB")).astype(int)).max()
    assert away > 10 and index.warnings == ()


def test_a_profile_of_srgb_changes_no_byte(tmp_path: Path) -> None:
    plain = saved(
        tmp_path / "a.png", Image.fromarray(picture(3, *SIZE)), profile(PRIMARIES["sRGB"], None)
    )
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
    wanted = by_lcms(Image.fromarray(rgba[..., :3]), icc)
    assert np.abs(pixels[10:].astype(int) - wanted[10:]).max() <= 2
    few = Image.fromarray(picture(3, *SIZE)).quantize(16)
    saved(tmp_path / "b.png", few, icc)
    wanted = by_lcms(few.convert("RGB"), icc)
    assert np.abs(read_image(tmp_path / "b.png")[1].pixels[0].astype(int) - wanted).max() <= 2


def test_a_profile_of_another_kind_of_picture_is_ignored(tmp_path: Path) -> None:
    grey = Image.fromarray(picture(3, *SIZE)).convert("L")
    saved(tmp_path / "a.png", grey, profile(PRIMARIES["Display P3"]))
    index, chunk = read_image(tmp_path / "a.png")
    assert np.array_equal(chunk.pixels[0][..., 0], np.asarray(grey))
    assert any("profile" in each for each in index.warnings)

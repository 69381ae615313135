"""Every stored form of a picture comes out as the array that the test wrote: orientations, depths,
transparency, in the model's frame, in the thumbnail and in the fingerprint."""

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from artifacts.frame_fit import FrameFit
from artifacts.schema import Sampling
from flows.outputs.thumbnails import thumbnail
from stages.frames.image import read_image
from stages.frames.video import Video
from stages.sift.run import image_marks
from tests.support.media import write_png

Pixels = NDArray[Any]
READS_PIXELS = re.compile(r"Image\.open\(|VideoReformatter\(|exif_transpose|\.to_(image|ndarray)\(")
READERS = {
    "stages/frames/image.py",
    "stages/frames/frame_converter.py",
    "stages/frames/shots.py",  # compares frames with each other
    "stages/frames/clip_sound.py",  # takes samples of sound
    "stages/sound/track.py",  # the same
    "stages/frames/to_srgb.py",  # maps what both decoded
    "stages/sift/run.py",  # looks at the mode only
}
"""Everything of the program that may decode pixels: others ask the first two."""
HEIGHT, WIDTH = 40, 64
FLIPS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}
"""EXIF orientation → how an upright array is stored. CIPA DC-008 names the sides that the first row
and the first column show: top and left; top, right; bottom, right; bottom, left; left, top; right,
top; right, bottom; left, bottom."""


def shades() -> Pixels:
    """A grey picture without any symmetry."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    grey: Pixels = 20 + 2 * rows + 2 * columns + 20 * (columns > 40) * (rows < 12)
    return grey.astype(np.uint8)


def colours() -> Pixels:
    grey = shades()
    return np.stack([grey, 255 - grey, np.full_like(grey, 90)], axis=2)


def tiff(
    path: Path,
    samples: NDArray[np.uint8],
    shape: tuple[int, int],
    bits: tuple[int, ...],
    *,
    orientation: int = 1,
    lzw: bool = False,
    sample_format: int = 1,
    white_is_zero: bool = False,
) -> Path:
    """Write a TIFF of one strip from its packed bytes (TIFF 6.0, little-endian). LZW codes stay
    literal: the table is cleared before the codes grow."""
    data = samples.tobytes()
    if lzw:
        groups = [data[at : at + 240] for at in range(0, len(data), 240)]
        codes = [code for group in groups for code in (256, *group)]
        text = "".join(f"{code:09b}" for code in (*codes, 257))
        text += "0" * (-len(text) % 8)
        data = bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))
    count = len(bits)
    end = 8 + len(data) + len(data) % 2
    tags = [
        (256, 3, 1, shape[1]),
        (257, 3, 1, shape[0]),
        (258, 3, count, bits[0] if count == 1 else end),
        (259, 3, 1, 5 if lzw else 1),
        (262, 3, 1, 2 if count == 3 else int(not white_is_zero)),
        (273, 4, 1, 8),
        (274, 3, 1, orientation),
        (277, 3, 1, count),
        (278, 3, 1, shape[0]),
        (279, 4, 1, len(data)),
        (339, 3, 1, sample_format),
    ]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    body = data.ljust(end - 8, b"\0") + struct.pack(f"<{count}H", *bits) + ifd + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", end + 2 * count) + body)
    return path


def packed(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return rows of unsigned values as the bytes of a TIFF; 12 bits are two values in three
    bytes."""
    if bits != 12:
        return values.astype(f"<u{bits // 8}").view(np.uint8)
    first, second = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    triple = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2)
    return triple.reshape(len(values), -1).astype(np.uint8)


def deepened(grey: Pixels, bits: int) -> Pixels:
    """Return values of more bits whose first 8 are these."""
    noise = np.random.default_rng(0).integers(0, 1 << bits - 8, grey.shape)
    return (grey.astype(np.uint32) << bits - 8) + noise.astype(np.uint32)


def saved(path: Path, array: Pixels, mode: str | None = None, **options: Any) -> Path:
    orientation = options.pop("orientation", 1)
    image = Image.fromarray(np.ascontiguousarray(array))
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    (image.convert(mode) if mode else image).save(path, exif=exif.tobytes(), **options)
    return path


TURNED: dict[str, tuple[str, dict[str, Any], float]] = {
    "jpeg": ("jpg", {"quality": 97, "subsampling": 0}, 4),
    "png": ("png", {}, 0),
    "tiff": ("tif", {}, 0),
    "tiff-lzw": ("tif", {"compression": "tiff_lzw"}, 0),
    "webp": ("webp", {"lossless": True}, 0),
    "avif": ("avif", {"quality": 97, "subsampling": "4:4:4"}, 4),
    "heic": ("heic", {"quality": 97, "chroma": 444}, 4),
}
"""Form → suffix, how Pillow saves it, mean difference that its compression may make."""


def assert_shows(path: Path, upright: Pixels, loss: float) -> None:
    media, chunk = read_image(path)
    assert (media.height, media.width) == upright.shape[:2], path.name
    expected = upright if upright.ndim == 3 else upright[..., None].repeat(3, axis=2)
    difference = np.abs(chunk.pixels[0].astype(int) - expected).mean()
    assert difference <= loss, f"{path.name}: {difference:.1f} levels from what was written"


@pytest.mark.parametrize("form", TURNED)
def test_every_orientation_comes_out_upright_everywhere(tmp_path: Path, form: str) -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    suffix, options, loss = TURNED[form]
    upright = colours()
    fingerprint = image_marks(saved(tmp_path / "plain.png", upright)).looks[0].thumb.astype(int)
    for orientation, flip in FLIPS.items():
        path = tmp_path / f"{form}-{orientation}.{suffix}"
        saved(path, flip(upright), orientation=orientation, **options)
        assert_shows(path, upright, loss)
        jpeg = thumbnail(path, None)
        assert jpeg is not None
        small = np.asarray(Image.open(io.BytesIO(jpeg)), int)
        assert small.shape == upright.shape, f"thumbnail of {path.name} is {small.shape}"
        assert np.abs(small - upright).mean() < 12, f"thumbnail of {path.name}"
        difference = np.abs(image_marks(path).looks[0].thumb - fingerprint).mean()
        assert difference < 4, f"fingerprint of {path.name}: {difference:.1f} levels"


@pytest.mark.parametrize("lzw", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16, 32])
def test_a_tiff_of_any_depth_is_scaled_by_its_bits_and_turned_once(
    tmp_path: Path, bits: int, lzw: bool
) -> None:
    upright = shades()
    for orientation, flip in FLIPS.items():
        stored = flip(upright)
        samples = packed(deepened(stored, bits), bits)
        name = tmp_path / f"{bits}-{lzw}-{orientation}.tif"
        tiff(name, samples, stored.shape, (bits,), orientation=orientation, lzw=lzw)
        assert_shows(name, upright, 0)
        assert read_image(name)[0].warnings == ()


def filled(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def deep_files(folder: Path) -> Iterator[tuple[Path, Pixels, float]]:
    """Yield pictures of other depths and kinds of numbers, and what each shows."""
    grey, black = shades(), np.where(shades() < 90, 0, 255).astype(np.uint8)
    for name in ("1.png", "1.tif", "1.bmp"):
        yield saved(folder / name, black, "1"), black, 0
    yield saved(folder / "g4.tif", black, "1", compression="group4"), black, 0
    deep = deepened(grey, 16).astype(np.uint16)
    yield saved(folder / "16.png", deep), grey, 0
    for bits in (12, 16):
        head = b"P5 %d %d %d\n" % (WIDTH, HEIGHT, (1 << bits) - 1)
        body = (deep >> 16 - bits).astype(">u2").tobytes()
        yield filled(folder / f"{bits}.pgm", head + body), grey, 0
    inverted = packed(0xFFFF - deep, 16)
    yield tiff(folder / "white.tif", inverted, grey.shape, (16,), white_is_zero=True), grey, 0
    rgb = deepened(colours().reshape(HEIGHT, -1), 16)
    yield tiff(folder / "rgb16.tif", packed(rgb, 16), grey.shape, (16,) * 3), colours(), 0.6
    for bits in (16, 32):
        signed, path = packed(deepened(grey, bits) >> 1, bits), folder / f"signed{bits}.tif"
        yield tiff(path, signed, grey.shape, (bits,), sample_format=2), grey, 0
    light = (grey / np.float32(255)).astype("<f4")
    floats = light.view(np.uint8)
    yield tiff(folder / "float.tif", floats, grey.shape, (32,), sample_format=3), grey, 0.6
    lzw = folder / "float-lzw.tif"
    yield tiff(lzw, floats, grey.shape, (32,), sample_format=3, lzw=True), grey, 0.6
    head = b"Pf\n%d %d\n-1.0\n" % (WIDTH, HEIGHT)
    yield filled(folder / "float.ppm", head + light[::-1].tobytes()), grey, 0.6


def bmp(body: bytes, shape: tuple[int, ...], bits: int) -> bytes:
    """Return a BMP without masks; `body` has its rows from the last to the first."""
    header = struct.pack("<IiiHHIIIIII", 40, shape[1], shape[0], 1, bits, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + header + body


def moded_files(folder: Path) -> Iterator[tuple[Path, Pixels, float]]:
    """Yield pictures of every mode of BMP and GIF, and what each shows."""
    grey, rgb = shades(), colours()
    black = np.where(grey < 90, 0, 255).astype(np.uint8)
    for mode, shown in {"1": black, "L": grey, "P": rgb // 64 * 64, "RGB": rgb}.items():
        image = Image.fromarray(shown)
        image = image.quantize(64) if mode == "P" else image.convert(mode)
        if mode != "1":
            image.save(path := folder / f"{mode}.bmp")
            yield path, shown, 0
        for interlace in (0, 1) if mode != "RGB" else ():
            image.save(path := folder / f"{mode}{interlace}.gif", interlace=interlace)
            yield path, shown, 0
    alpha = np.dstack([rgb, np.full_like(grey, 255)])
    alpha[:20, :32, 3] = 0
    white = rgb.copy()
    white[:20, :32] = 255
    sizes, masks = (108, WIDTH, -HEIGHT, 1, 32, 3), (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHH10I", *sizes, *[0] * 5, *masks).ljust(108, b"\0")
    body = alpha[..., [2, 1, 0, 3]].tobytes()
    head = b"BM" + struct.pack("<IHHI", 122 + len(body), 0, 0, 122)
    yield filled(folder / "alpha.bmp", head + header + body), white, 0
    five = rgb.astype(np.uint16) >> 3
    body = (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]).astype("<u2")[::-1].tobytes()
    yield filled(folder / "555.bmp", bmp(body, grey.shape, 16)), rgb, 4
    clear = Image.fromarray(np.where(white[..., 0] == 255, 1, 0).astype(np.uint8), "P")
    clear.putpalette([10, 20, 30, 200, 0, 0])
    clear.save(folder / "clear.gif", transparency=1)
    yield folder / "clear.gif", np.where(white == 255, 255, [10, 20, 30]), 0


@pytest.mark.parametrize("files", [deep_files, moded_files])
def test_every_depth_and_mode_comes_out_as_written(
    tmp_path: Path, files: Callable[[Path], Iterator[tuple[Path, Pixels, float]]]
) -> None:
    for path, upright, loss in files(tmp_path):
        assert_shows(path, upright, loss)
        if path.suffix != ".gif":
            continue
        with Video(path, threads=1) as video:  # as a file of this suffix is read
            plans = video.plan(Sampling(chunk_seconds=9, fps=1, max_frames=9))
            (chunk,) = video.chunks(plans, FrameFit())
        expected = upright if upright.ndim == 3 else upright[..., None]
        assert np.abs(chunk.pixels[0].astype(int) - expected).mean() <= loss, path.name


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0, 0.5, 1, 2, 4], [0, 127, 255, 255, 255]),  # light, with highlights
        (np.linspace(0, 4, 64), np.linspace(0, 1020, 64).clip(0, 255).astype(int)),
        ([0, 1, 1, 0], [0, 255, 255, 0]),
        ([0, 0, 0, 0, 0, 3], [0, 0, 0, 0, 0, 3]),  # a dark picture of 8 bits
        ([0, 1, 20, 255], [0, 1, 20, 255]),
        ([0, 0, 0, 0, 0, 256.5], [0, 0, 0, 0, 0, 1]),  # 16 bits
        ([0, 25600, 65535], [0, 100, 255]),
    ],
)
def test_the_white_of_grey_in_fractions_depends_on_its_largest_value_alone(
    tmp_path: Path, values: list[float], shown: list[int]
) -> None:
    grey = np.array([values], "<f4")
    path = tiff(tmp_path / "a.tif", grey.view(np.uint8), grey.shape, (32,), sample_format=3)
    assert read_image(path)[1].pixels[0, 0, :, 0].tolist() == list(shown)


@pytest.mark.parametrize(("brightest", "is_dark"), [(4095, True), (4096, False)])
def test_a_deep_picture_that_uses_a_small_part_of_its_range_is_said_to_be_dark(
    tmp_path: Path, brightest: int, is_dark: bool
) -> None:
    deep = np.linspace(0, brightest, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "a.png")
    tiff(tmp_path / "a.tif", packed(deep, 16), deep.shape, (16,), lzw=True)
    rgb = tiff(tmp_path / "b.tif", packed(deep.repeat(3, axis=1), 16), deep.shape, (16,) * 3)
    for path in (tmp_path / "a.png", tmp_path / "a.tif", rgb):
        media, chunk = read_image(path)
        np.testing.assert_array_equal(chunk.pixels[0, ..., 0], deep >> 8)
        text = ("almost black: it uses less than a sixteenth of its 16-bit range",) * is_dark
        assert media.warnings == text, path.name
    saved(tmp_path / "night.png", (deep >> 8).astype(np.uint8))
    (tmp_path / "night.bmp").write_bytes(bmp(bytes(2 * 8 * 8), (8, 8), 16))
    for name in ("night.png", "night.bmp"):
        assert read_image(tmp_path / name)[0].warnings == (), name


@pytest.mark.parametrize(
    ("bits", "colour_type", "row", "key", "shown"),
    [
        (1, 0, b"\x40", (0,), [255, 255]),
        (2, 0, b"\x60", (1,), [255, 170]),
        (4, 0, b"\x5a", (5,), [255, 170]),
        (8, 0, b"\x05\x32", (5,), [255, 50]),
        (16, 0, struct.pack(">2H", 1000, 30000), (1000,), [255, 117]),
        (8, 2, bytes([1, 1, 1, 50, 50, 50]), (1, 1, 1), [255, 50]),
        (16, 2, struct.pack(">6H", *[300] * 3, *[30000] * 3), (300, 300, 300), [255, 117]),
    ],
)
def test_the_transparent_shade_of_a_png_is_white_at_every_depth(
    tmp_path: Path, bits: int, colour_type: int, row: bytes, key: tuple[int, ...], shown: list[int]
) -> None:
    header = struct.pack(">IIBBBBB", 2, 1, bits, colour_type, 0, 0, 0)
    chunks = {b"IHDR": header, b"tRNS": struct.pack(f">{len(key)}H", *key)}
    path = write_png(tmp_path / "a.png", {**chunks, b"IDAT": zlib.compress(b"\0" + row)})
    assert read_image(path)[1].pixels[0, 0, :, 1].tolist() == shown


def test_only_the_two_readers_decode_pixels_of_media() -> None:
    root = Path(__file__).parents[4]
    files = [path for name in ("flows", "stages") for path in (root / name).rglob("*.py")]
    found = {str(f.relative_to(root)) for f in files if READS_PIXELS.search(f.read_text())}
    assert found == READERS

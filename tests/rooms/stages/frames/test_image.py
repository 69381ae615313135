"""Pictures come out upright, in RGB, at their own size; unusable ones say why."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import artifacts.frame_fit
from artifacts.disk.json_records import read_record
from artifacts.errors import MediaError
from artifacts.frame_fit import FrameFit, stored_size
from artifacts.schema import MediaIndex, Sampling
from stages.frames import READING_BYTES
from stages.frames import image as image_module
from stages.frames.image import STRIP, WRONG_SUMS, read_image
from stages.frames.job import UNSTORED_KINDS
from stages.frames.video import Video
from stages.process.memory import Sampler
from tests.support.media import picture, write_video


def save(path: Path, image: Image.Image, *, orientation: int = 1, **options: object) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **options)  # type: ignore[arg-type]
    return path


def test_a_picture_of_any_suffix_is_one_chunk_of_one_frame_at_0(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(picture(3)), format="PNG")
    media, chunk = read_image(path)
    assert (media.kind, media.duration, media.height, media.width) == ("image", 0, 48, 64)
    assert media.chunks == (chunk.index,)
    assert (chunk.index.start, chunk.index.end, chunk.index.times) == (0, 0, (0.0,))
    np.testing.assert_array_equal(chunk.pixels[0], picture(3))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_picture_is_what_pillow_reads_at_its_own_size(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (STRIP + 44, 600, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise), quality=90)
    media, chunk = read_image(path)
    assert (media.height, media.width) == (STRIP + 44, 600)
    with Image.open(path) as image:
        np.testing.assert_array_equal(chunk.pixels[0], np.asarray(image.convert("RGB")))


def test_a_jpeg_cut_short_is_used_with_a_warning(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / "a.jpg", Image.fromarray(noise), quality=95)
    whole = read_image(path)[1].pixels
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    media, chunk = read_image(path)
    assert media.warnings == ("truncated: the missing part of the image is grey",)
    np.testing.assert_array_equal(chunk.pixels[0, :8], whole[0, :8])


def test_an_avif_under_the_brand_of_any_such_picture_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.avif", Image.fromarray(picture(3)), quality=100)
    whole = read_image(path)[1].pixels
    data = bytearray(path.read_bytes())
    data[8:12] = b"mif1"  # as other writers do; `avif` stands among the brands behind it
    path.write_bytes(data)
    np.testing.assert_array_equal(read_image(path)[1].pixels, whole)


def test_unusable_pictures_say_what_to_do(tmp_path: Path) -> None:
    (heic := tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (text := tmp_path / "a.jpg").write_text("not a picture at all")
    Image.fromarray(picture(0)).save(torn := tmp_path / "torn.png")
    torn.write_bytes(torn.read_bytes()[:-60])
    kinds = {}
    for path in (heic, text, torn, tmp_path / "gone.png", tmp_path):
        with pytest.raises(MediaError) as caught:
            read_image(path)
        kinds[path] = caught.value.kind
        assert str(path) in caught.value.message and caught.value.hint
    assert list(kinds.values()) == ["damaged", "not-media", "damaged", "missing", "folder"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("edge", [12000, 30000])
def test_a_decompression_bomb_is_refused_before_memory_is_taken(tmp_path: Path, edge: int) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(picture(0)))
    data = bytearray(path.read_bytes())
    data[16:24] = edge.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with Sampler("cpu") as memory:
        before = memory.peak_host_bytes
        with pytest.raises(MediaError) as caught:
            read_image(path)
    assert caught.value.kind == "too-large"
    assert memory.peak_host_bytes - before < 50 << 20


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparency_of_every_mode_shows_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (200, 200, 200, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    if mode == "P":
        flat = Image.new("P", (8, 8), 1)
        flat.putpalette([0, 0, 0, 200, 200, 200])
        flat.paste(0, (0, 0, 4, 8))
        flat.save(tmp_path / "a.png", transparency=0)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    _, chunk = read_image(tmp_path / "a.png")
    assert chunk.pixels[0, 4, [1, 6]].tolist() == [[255] * 3, [200] * 3]


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif"])
def test_of_several_pictures_in_a_file_the_first_is_taken_with_a_warning(
    tmp_path: Path, name: str
) -> None:
    several = [Image.fromarray(picture(n)) for n in (3, 4, 5)]
    options: Any = {"lossless": True} if name == "a.webp" else {}
    several[0].save(tmp_path / name, save_all=True, append_images=several[1:], **options)
    media, chunk = read_image(tmp_path / name)
    assert media.warnings == ("only the first of its 3 images is used",)
    np.testing.assert_array_equal(chunk.pixels[0], picture(3))


def test_a_phone_s_photo_with_a_second_view_in_it_is_one_picture(tmp_path: Path) -> None:
    views = [Image.fromarray(picture(n)) for n in (3, 4)]
    views[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=views[1:])
    assert read_image(tmp_path / "a.jpg")[0].warnings == ()


def test_a_video_named_as_a_picture_is_told_its_suffix(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4").rename(tmp_path / "a.jpg")
    with pytest.raises(MediaError, match=r"\.mp4") as caught:
        read_image(tmp_path / "a.jpg")
    assert caught.value.kind == "not-media"


def test_a_picture_named_as_a_video_is_a_video_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(picture(3)).save(tmp_path / "a.mp4", format="PNG")
    with Video(tmp_path / "a.mp4") as video:
        plan = video.plan(Sampling(chunk_seconds=9, fps=1, max_frames=9))
        (chunk,) = video.chunks(plan, FrameFit())
        assert "a picture under the name of a video" in video.warnings()[0]
    np.testing.assert_array_equal(chunk.pixels[0], picture(3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("size", "by"), [((3000, 4000), 1), ((12241, 16321), 2)])
def test_a_photo_takes_no_more_memory_than_is_planned_for(
    tmp_path: Path, size: tuple[int, int], by: int
) -> None:
    """Of 200 million pixels, it is decoded at half its sides."""
    path = save(tmp_path / "a.jpg", Image.fromarray(picture(0)))
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0\x00\x11\x08") + 5
    data[at : at + 4] = struct.pack(">HH", *size)  # what it lacks of them is read as grey
    path.write_bytes(data)
    high, wide = -(-size[0] // by), -(-size[1] // by)
    with Sampler("cpu") as memory:
        before = memory.peak_host_bytes
        media, chunk = read_image(path)
    assert (media.height, media.width) == size
    assert chunk.pixels.shape == (1, high, wide, 3)
    assert media == read_record(MediaIndex, media.to_json())
    assert memory.peak_host_bytes - before < READING_BYTES * high * wide


def write_heic(path: Path, pixels: NDArray[np.uint8], **options: Any) -> Path:
    heif = pytest.importorskip("pillow_heif")
    image = heif.from_bytes("RGB", pixels.shape[1::-1], pixels.tobytes())
    image.save(path, quality=90, enc_params={"preset": "ultrafast"}, **options)
    return path


@pytest.mark.parametrize("size", [(300, 420), (301, 419)])
def test_a_heic_of_too_many_pixels_is_kept_at_half_its_sides(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth = np.linspace(0, 255, size[0] * size[1] * 3).reshape(*size, 3).astype(np.uint8)
    path = write_heic(tmp_path / "a.heic", smooth)
    _, whole = read_image(path)
    for module in (artifacts.frame_fit, image_module):
        monkeypatch.setattr(module, "MAX_PIXELS", size[0] * size[1] - 1)
    media, chunk = read_image(path)
    assert (media.height, media.width) == size
    assert chunk.pixels.shape == (1, *stored_size(*size), 3)
    expected = np.asarray(Image.fromarray(whole.pixels[0]).reduce(2))
    np.testing.assert_array_equal(chunk.pixels[0], expected)
    fit = FrameFit(long_edges=((1.0, 50),), shrinks=True)
    media, chunk = read_image(path, fit)
    assert (media.height, media.width, media.shrunk) == (*size, 4)
    assert chunk.pixels.shape == (1, *fit.stored(*size), 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", size[0] * size[1] // 2 - 1)
    with pytest.raises(MediaError, match="too many pixels"):
        read_image(path)


def test_a_large_heic_for_which_memory_is_short_fails_in_this_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_heic(tmp_path / "a.heic", picture(1, 300, 420))
    for module in (artifacts.frame_fit, image_module):
        monkeypatch.setattr(module, "MAX_PIXELS", 100_000)
    needed = READING_BYTES * 300 * 420
    monkeypatch.setattr(image_module, "room", lambda: needed)
    assert read_image(path)[0].height == 300
    for free in ("room", "host_free_bytes"):
        monkeypatch.setattr(image_module, free, lambda: needed - 1)
        with pytest.raises(MediaError, match="420 x 300 pixels, which need") as caught:
            read_image(path)
        assert str(path) in caught.value.message and caught.value.hint
        assert caught.value.kind in UNSTORED_KINDS
        monkeypatch.setattr(image_module, free, lambda: needed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_heic_of_a_phone_is_read_in_the_memory_that_is_planned(tmp_path: Path) -> None:
    size = (12288, 16384)
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[: size[0] // 2, : size[1] // 2] = (200, 60, 40)
    path = write_heic(tmp_path / "a.heic", pixels, tile_size=1024)
    del pixels
    with Sampler("cpu") as memory:
        before = memory.peak_host_bytes
        media, chunk = read_image(path)
    assert (media.height, media.width) == size
    assert chunk.pixels.shape == (1, size[0] // 2, size[1] // 2, 3)
    corners = chunk.pixels[0, [100, -100], [100, -100]].astype(int)
    assert abs(corners - [(200, 60, 40), (0, 0, 0)]).max() < 8
    assert memory.peak_host_bytes - before < READING_BYTES * size[0] * size[1]


@pytest.mark.parametrize("size", [(400, 640), (645, 403)])
@pytest.mark.parametrize("form", ["jpg", "png"])
def test_a_picture_may_be_made_smaller_while_it_is_decoded(
    tmp_path: Path, size: tuple[int, int], form: str
) -> None:
    fit = FrameFit(long_edges=((0.5, 80), (1.0, 50), (2.0, 80)), shrinks=True)
    high, wide = size
    rows, columns = np.mgrid[:high, :wide]
    waves = 127 + 60 * np.sin(rows / 40) + 60 * np.cos(columns / 55)
    picture = Image.fromarray(np.stack([waves, waves.T[::-1].T, 255 - waves], 2).astype(np.uint8))
    path = save(tmp_path / f"a.{form}", picture, **({"quality": 95} if form == "jpg" else {}))
    media, chunk = read_image(path, fit)
    by = fit.divisor(high, wide)
    assert by > 1 and media.shrunk == by and (media.height, media.width) == size
    stored = fit.stored(high, wide)
    assert chunk.pixels.shape[1:3] == stored == (round(high / by), round(wide / by))
    assert (media.chunks[0].height, media.chunks[0].width) == stored
    assert read_record(MediaIndex, media.to_json()) == media
    expected = np.asarray(picture.resize(stored[::-1], Image.Resampling.BOX), np.float32)
    assert np.abs(chunk.pixels[0] - expected).mean() < 2
    assert read_image(path)[0].shrunk == 1


def _flipped(path: Path, kind: bytes) -> None:
    """Save a picture as PNG with one wrong bit in the check sum of a chunk."""
    picture = np.random.default_rng(3).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "PNG")
    data = bytearray(written.getvalue())
    at = data.index(kind)
    data[at + 4 + int.from_bytes(data[at - 4 : at])] ^= 1
    path.write_bytes(data)


def test_a_png_whose_check_sum_of_pixels_is_wrong_has_a_warning(tmp_path: Path) -> None:
    _flipped(path := tmp_path / "a.png", b"IDAT")
    media, _ = read_image(path)
    assert media.warnings == (WRONG_SUMS,), f"warnings: {media.warnings}"
    _flipped(path, b"IEND")  # behind all pixels
    assert read_image(path)[0].warnings == ()


@pytest.mark.parametrize(("free", "kind"), [(60 << 20, "no-memory"), (1 << 40, "damaged")])
def test_a_decoder_that_may_lack_memory_damages_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, kind: str
) -> None:
    """WebP's says the same for both."""
    Image.new("RGB", (64, 64)).save(path := tmp_path / "a.webp")
    path.write_bytes(path.read_bytes()[:40])
    monkeypatch.setattr(image_module, "room", lambda: free)
    with pytest.raises(MediaError) as caught:
        read_image(path)
    assert caught.value.kind == kind
    assert (kind in UNSTORED_KINDS) is (kind == "no-memory")

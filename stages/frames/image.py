"""Reads an image file as one upright RGB frame in its own size."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from artifacts.errors import MediaError
from artifacts.schema import MAX_PIXELS, ChunkIndex, FrameFit, MediaIndex, stored_size
from stages.frames.chunk import Chunk
from stages.frames.formats import check_file, image_formats, is_heic

MAX_JPEG_PIXELS = 1 << 28
"""A JPEG of more than MAX_PIXELS, such as a phone's 200 million, is decoded at half its size with
a quarter of the memory. No other format supports that."""
Image.MAX_IMAGE_PIXELS = MAX_JPEG_PIXELS // 2  # Pillow warns above it and refuses above twice it
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
STRIP = 256
"""Rows that are copied from Pillow to NumPy at once. Copying all at once would hold the image three
times."""
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → the operation that makes the image upright."""
SWAPPING = frozenset((5, 6, 7, 8))
"""Orientations that swap height and width."""
JPEGS = frozenset(("JPEG", "MPO"))
"""Formats of phone files in which all images show the same view: a preview, a depth map, a gain
map."""
TRUNCATED = "truncated: the missing part of the image is grey"
BROKEN = (
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    struct.error,
)
"""Errors that Pillow raises for damaged content, depending on the format."""


def read_image(
    path: Path, fit: FrameFit | None = None, max_pixels: int = 0
) -> tuple[MediaIndex, Chunk]:
    """Read an image as a medium of one chunk of one frame. It is downscaled while it is decoded if
    `fit` allows that. Raises MediaError, also for more than `max_pixels` (0: no such limit), before
    decoding."""
    fit = fit or FrameFit()
    check_file(path)
    try:
        formats = image_formats(path)
        try:
            height, width, pixels, found = _decode(path, formats, fit, max_pixels)
        except OSError as error:
            whole = path.read_bytes()
            if error.errno is not None or not whole.startswith(JPEG_START):
                raise
            # With an end marker appended, libjpeg fills the missing part with grey.
            repaired = io.BytesIO(whole + JPEG_END)
            height, width, pixels, _ = _decode(repaired, formats, fit, max_pixels)
            found = (TRUNCATED,)
    except Image.DecompressionBombError as error:
        raise MediaError(
            f"{path} has too many pixels ({error})",
            kind="too-large",
            hint="Scale it down first, if its header is right",
        ) from error
    except UnidentifiedImageError as error:
        raise _unknown(path) from error
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise MediaError(
            f"{path} is damaged ({error})", kind="damaged", hint="Copy or download it again"
        ) from error
    index = ChunkIndex(
        index=0, start=0.0, end=0.0, times=(0.0,), height=pixels.shape[0], width=pixels.shape[1]
    )
    media = MediaIndex(
        kind="image",
        height=height,
        width=width,
        duration=0.0,
        chunks=(index,),
        warnings=found,
        shrunk=fit.divisor(height, width),
    )
    return media, Chunk(index=index, pixels=pixels[None])


def _decode(
    source: Path | io.BytesIO, formats: tuple[str, ...], fit: FrameFit, max_pixels: int
) -> tuple[int, int, NDArray[np.uint8], tuple[str, ...]]:
    """Return (height, width) as shown, pixels [height, width, 3] at the stored size, and
    warnings."""
    with Image.open(source, formats=formats) as image:
        size = image.size
        if 0 < max_pixels < size[0] * size[1]:
            raise Image.DecompressionBombError(f"{size[0]} x {size[1]}")
        turn = _orientation(image)
        width, height = size[::-1] if turn in SWAPPING else size
        # A JPEG is decoded at a fraction of its size, which is several times as fast.
        by = fit.divisor(height, width)
        divisor = max(by, 2 if stored_size(*size) != size else 1)
        if divisor > 1 and isinstance(image, ImageFile.ImageFile):
            image.draft("RGB", (size[0] // divisor, size[1] // divisor))
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height}")
        count = 1 if image.format in JPEGS else getattr(image, "n_frames", 1)
        flat = _rgb(image)
        if by > 1:
            flat = _divided(flat, size, by)
        if turn in UPRIGHT:
            flat = flat.transpose(UPRIGHT[turn])
        pixels = _pixels(flat)
    more = (f"only the first of its {count} images is used",) if count > 1 else ()
    return height, width, pixels, more


def _divided(image: Image.Image, size: tuple[int, int], by: int) -> Image.Image:
    """Return an image of the given full size with its sides divided by `by`.

    A decoder that divides pads the last row and column. That padding would shift the content by a
    fraction of a pixel, which affects vectors: cosine 0.998 instead of 0.9999.
    """
    new_size = round(size[0] / by), round(size[1] / by)
    if image.size == size:  # not decoded smaller, as only JPEG is
        return image.resize(new_size, Image.Resampling.BOX)
    if size[0] % by == size[1] % by == 0:
        return image
    inside = (0.0, 0.0, size[0] / by, size[1] / by)
    return image.resize(new_size, Image.Resampling.BICUBIC, box=inside)


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels [height, width, 3]."""
    found = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP):
        rows = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        found[top : top + STRIP] = np.asarray(rows)
    return found


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except BROKEN:
        return 1  # a broken orientation tag does not matter


def _rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB; transparent parts become white."""
    if image.mode.startswith(("I", "F")):
        deep = np.nan_to_num(np.asarray(image), posinf=0).clip(0, 65535)
        if image.mode == "F" and deep.mean() <= 1:  # light from 0 to 1, with brighter highlights
            deep = (deep * 255).clip(0, 255)
        image = Image.fromarray((deep // 256 if deep.max(initial=0) > 255 else deep).astype("u1"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _unknown(path: Path) -> MediaError:
    with path.open("rb") as file:
        start = file.read(12)
    if is_heic(path):
        return MediaError(
            f"{path} is damaged (no image found in it)",
            kind="damaged",
            hint="Copy or download it again",
        )
    if start[4:8] == b"ftyp":
        return MediaError(
            f"{path} contains a video but has the suffix of an image",
            kind="not-media",
            hint="Rename it to .mp4",
        )
    return MediaError(
        f"{path} is not an image that Pillow can read",
        kind="not-media",
        hint="Check in a viewer whether it is complete, or leave it out",
    )

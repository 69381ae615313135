"""Reads an image file as one RGB frame in its own size: upright, and white where it is transparent.

Frames of videos (`frame_converter.py`) come through the same function, so that a model, a thumbnail
and a fingerprint have the same view of a file.
"""

import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from artifacts.disk.regular_files import open_regular
from artifacts.errors import MediaError
from artifacts.frame_fit import MAX_PIXELS, FrameFit, stored_size
from artifacts.schema import ChunkIndex, MediaIndex
from stages.frames import READING_BYTES
from stages.frames.chunk import Chunk
from stages.frames.formats import check_file
from stages.frames.image_formats import image_formats, is_heic
from stages.frames.job import NO_ROOM
from stages.frames.to_srgb import HIGH_DYNAMIC_RANGE, curve_of, in_srgb, toned
from stages.process.host_memory import host_free_bytes
from stages.process.memory_limit import room

STRIP = 256
"""Rows that are copied from Pillow to NumPy at once. Copying all at once would hold the image three
times."""
TURNS = {
    1: (False, 0), 2: (True, 0), 3: (False, 2), 4: (True, 2),
    5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1),
}  # fmt: skip
"""EXIF orientation → whether left and right are swapped first, and the counter-clockwise quarter
turns that then make the stored pixels upright."""


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return two sides as they are after turning; the same call turns them back."""
    return size[::-1] if TURNS[orientation][1] % 2 else size


def turn(
    pixels: NDArray[np.uint8], orientation: int, out: NDArray[np.uint8], *, top: int = 0
) -> None:
    """Write stored pixels [rows, width, ...] upright into `out`, which holds the whole image;
    `top` is their first row in the file."""
    mirrored, turns = TURNS[orientation]
    stored = np.rot90(out, -turns)  # a view of `out` in which pixels lie as in the file
    stored = (stored[:, ::-1] if mirrored else stored)[top : top + len(pixels)]
    # A quarter turn of whole pixels takes three times as long as of one colour after another.
    for colour in np.ndindex(*pixels.shape[2:]) if turns % 2 else [()]:
        stored[(..., *colour)] = pixels[(..., *colour)]


def upright_rgb(image: Image.Image, orientation: int) -> NDArray[np.uint8]:
    """Return the pixels [height, width, 3] of an image of any 8-bit mode, upright and on white."""
    width, height = turned_size(image.size, orientation)
    upright = np.empty((height, width, 3), np.uint8)
    for top in range(0, image.height, STRIP):
        rows = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        turn(np.asarray(on_white(rows)), orientation, upright, top=top)
    return upright


def on_white(image: Image.Image) -> Image.Image:
    """Return an image of any 8-bit mode in RGB, on white."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


MAX_HALVED_PIXELS = 1 << 28
"""Most pixels of a JPEG or HEIC, such as a phone's 200 million. Above MAX_PIXELS they are stored at
half their size. libjpeg decodes at that size, with a quarter of the memory; libheif cannot."""
Image.MAX_IMAGE_PIXELS = MAX_HALVED_PIXELS // 2  # Pillow warns above it and refuses above twice it
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
SRGB = 1
"""Number of sRGB in an Exif block."""
DARK = 16
"""If no value of a deep image reaches this in 8 bits, it uses a sixteenth of its range at most."""
JPEGS = frozenset(("JPEG", "MPO"))
"""Formats of phone files in which all images show the same view: a preview, a depth map, a gain
map."""
HEIC = "HEIF"
"""Pillow's name of the format."""
LOSSY = JPEGS | {"AVIF", HEIC}
"""Formats, by Pillow's names, whose copies are JPEG, as are those of lossy WebP; others are PNG."""
WEBP_PIXELS = {b"VP8 ": False, b"VP8L": True}
"""Chunk of a WebP that holds a picture → whether without loss."""
TRUNCATED = "truncated: the missing part of the image is grey"
WRONG_SUMS = "damaged: its check sums do not fit its data; some of the image may be wrong"
PNG_START, BLOCK = 8, 1 << 20
"""Bytes before the first chunk of a PNG, and those of it that are read at a time."""
DECODER_BYTES = 256 << 20
"""With less memory than this, an image that cannot even be opened may be whole."""
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
            # Given a name, Pillow maps a TIFF into memory and then turns it wrongly.
            with open_regular(path) as file:
                height, width, pixels, notes = _decode(path, file, formats, fit, max_pixels)
        except OSError as error:
            content = path.read_bytes()
            if error.errno is not None or not content.startswith(JPEG_START):
                raise
            # With an end marker appended, libjpeg fills the missing part with grey.
            repaired = io.BytesIO(content + JPEG_END)
            height, width, pixels, _ = _decode(path, repaired, formats, fit, max_pixels)
            notes = (TRUNCATED,)
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
        _check_decoder_room(path)
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
        warnings=notes,
        shrunk=fit.divisor(height, width),
    )
    return media, Chunk(index=index, pixels=pixels[None])


def image_size(path: Path) -> tuple[int, int] | None:
    """Return height and width by the header of an image; None if that is damaged, and still may be
    readable. Raises MediaError for what is no image."""
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=image_formats(path)) as image:
                return image.height, image.width
    except UnidentifiedImageError as error:
        with open_regular(path) as file:
            if file.read(len(JPEG_START)) == JPEG_START:  # see `read_image`
                return None
        raise _unknown(path) from error


def _decode(
    path: Path, source: IO[bytes], formats: tuple[str, ...], fit: FrameFit, max_pixels: int
) -> tuple[int, int, NDArray[np.uint8], tuple[str, ...]]:
    """Return (height, width) as shown, pixels [height, width, 3] as stored, and warnings."""
    with Image.open(source, formats=formats) as image:
        size = image.size
        if 0 < max_pixels < size[0] * size[1]:
            raise Image.DecompressionBombError(f"{size[0]} x {size[1]}")
        bits = _bits(image)
        curve, primaries = curve_of(image, source)
        # A JPEG is decoded at a fraction of its size, which is several times as fast.
        is_large, divisor = stored_size(*size) != size, 1
        if image.format in JPEGS or (is_large and image.format == HEIC):
            width, height = turned_size(size, _orientation(image))
            divisor = max(fit.divisor(height, width), 2 if is_large else 1)
        if is_large and image.format == HEIC:
            _check_room(path, size)
        elif divisor > 1 and isinstance(image, ImageFile.ImageFile):
            image.draft("RGB", (size[0] // divisor, size[1] // divisor))
        if image.format != HEIC and image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height}")
        count = 1 if image.format in JPEGS else getattr(image, "n_frames", 1)
        image.load()
        # Pillow turns some formats itself while it loads them, and then drops the tag. What is left
        # in the tag now is left to do.
        turn = _orientation(image)
        size = size if image.format in JPEGS else image.size
        width, height = turned_size(size, turn)
        if bits != 8 and image.mode in ("L", "RGB") and (key := image.info.get("transparency")):
            image.info["transparency"] = _key_in_8_bits(key, bits)
        flat = _in_8_bits(image) if image.mode.startswith(("I", "F")) else image
        if image.format == HEIC and divisor > 1:
            flat = flat.reduce(divisor)
        flat, warning = in_srgb(flat, curve, primaries)
        by = fit.divisor(height, width)
        pixels = upright_rgb(_divided(on_white(flat), size, by) if by > 1 else flat, turn)
    notes = [f"only the first of its {count} images is used"] if count > 1 else []
    notes += [warning] if warning else []
    notes += [WRONG_SUMS] if image.format == "PNG" and not _has_right_sums(source) else []
    if curve in HIGH_DYNAMIC_RANGE:
        pixels = toned(pixels.astype(np.uint16) * 257, curve, primaries)
    if bits > 8 and pixels.max(initial=0) < DARK:
        notes.append(f"almost black: it uses less than a sixteenth of its {bits}-bit range")
    return height, width, pixels, tuple(notes)


def _has_right_sums(source: IO[bytes]) -> bool:
    """Return whether the check sums of all chunks of a PNG fit their data. Pillow does not check
    those of pixels."""
    source.seek(PNG_START)
    while len(head := source.read(8)) == 8 and head[4:] != b"IEND":
        left, total = int.from_bytes(head[:4]), zlib.crc32(head[4:])
        while left and (block := source.read(min(left, BLOCK))):
            left, total = left - len(block), zlib.crc32(block, total)
        if source.read(4) != total.to_bytes(4):
            return False
    return True


def differs(path: Path) -> str:
    """Return why a reader that opens a picture with Pillow, and converts it to RGB, shows it
    otherwise than the model saw it; empty if it does not. LTX's converts it by its profile, in its
    own mode, and reads the Exif block. Decodes nothing. Raises MediaError."""
    try:
        formats = image_formats(path)
        with open_regular(path) as file, Image.open(file, formats=formats) as image:
            turn, exif = _orientation(image), Image.Exif()
            exif.load(image.info.get("exif", b""))  # raises as readers that end at a broken block
            colours = curve_of(image, file)
            is_moving = image.format not in JPEGS and getattr(image, "n_frames", 1) > 1
            checks = {
                "HEIC": image.format == "HEIF",
                "turned": turn != 1,
                "transparent": image.has_transparency_data,
                "other colours": exif.get(ExifTags.Base.ColorSpace, SRGB) != SRGB
                or _has_other_colours(image, *colours),
                # Pillow itself reads colours of 16 bits by their upper 8, as the model gets them.
                f"{_bits(image)} bits": image.mode.startswith(("I", "F")),
                "several images": is_moving,
                "too large": image.width * image.height > MAX_HALVED_PIXELS // 2,
            }
    except (*BROKEN, UnidentifiedImageError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return "damaged"
    return next((why for why, holds in checks.items() if holds), "")


def is_still(path: Path) -> bool:
    """Return whether a file is a GIF or an APNG of one frame."""
    try:
        with open_regular(path) as file, Image.open(file, formats=("GIF", "PNG")) as image:
            return getattr(image, "n_frames", 1) == 1
    except (*BROKEN, Image.DecompressionBombError):
        return False


def _has_other_colours(image: Image.Image, curve: int, primaries: int) -> bool:
    sample = Image.new(image.mode, (1, 1))
    if profile := image.info.get("icc_profile"):
        if image.mode != "RGB":  # no profile is applied to a palette or to single bits
            return True
        sample.info["icc_profile"] = profile
    return curve in HIGH_DYNAMIC_RANGE or in_srgb(sample, curve, primaries)[0] is not sample


def _check_room(path: Path, size: tuple[int, int]) -> None:
    """Raise MediaError if there is no memory to decode an image of this width and height."""
    needed, free = READING_BYTES * size[0] * size[1], _free_bytes()
    if needed > free:
        raise MediaError(
            f"{path} has {size[0]} x {size[1]} pixels, which need {needed / 2**30:.1f} GiB to be "
            f"decoded; {free / 2**30:.1f} GiB are free",
            kind=NO_ROOM,
            hint="Free some, give more by --memory, or scale it down first",
        )


def _check_decoder_room(path: Path) -> None:
    """Raise MediaError if an image may have failed for lack of memory: decoders such as that of
    WebP do not say so, and need some even for the size."""
    try:
        size = image_size(path)
    except BROKEN:
        if _free_bytes() < DECODER_BYTES:
            raise MediaError(
                f"{path} cannot be opened: there is too little memory, or it is damaged",
                kind=NO_ROOM,
                hint="Free some, or give more by --memory",
            ) from None
        return
    if size is not None:
        height, width = size
        _check_room(path, (width, height))


def _free_bytes() -> float:
    return min(room(), host_free_bytes())


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


def _orientation(image: Image.Image) -> int:
    try:
        turn = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except BROKEN:
        return 1  # a broken orientation tag does not matter
    return turn if turn in TURNS else 1


def _bits(image: Image.Image) -> int:
    """Return the bits per sample in the file, before it is loaded."""
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,))))
    # Pillow names layouts such as L;4 or RGB;16B; in a BMP, BGR;16 is 16 bits per pixel.
    match = re.search(r"'(?:L|LA|I|RGB|RGBA);(\d+)", str(getattr(image, "tile", "")))
    return int(match[1]) if match else 16 if image.mode.startswith(("I", "F")) else 8


def _key_in_8_bits(key: int | tuple[int, ...], bits: int) -> int | tuple[int, ...]:
    """Return the transparent grey or colour of a PNG as Pillow returns its pixels."""
    if isinstance(key, tuple):
        return tuple(channel >> bits - 8 for channel in key)
    return key * (255 // ((1 << bits) - 1))


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Convert grey of more bits per sample to 8: integers by their number of bits alone."""
    deep = np.asarray(image)
    if image.mode == "F":
        deep = np.nan_to_num(deep, posinf=0).clip(0, 65535)
        # Numbers of 16 or 8 bits, or light from 0 to 1 with brighter highlights.
        top = deep.max()
        scale = 1 / 256 if top > 255 else 1 if top > 1 and not (deep % 1).any() else 255
        return Image.fromarray((deep * scale).clip(0, 255).astype(np.uint8))
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits: int = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    if 2 in tags.get(ExifTags.Base.SampleFormat, ()):  # signed
        shallow = deep.clip(0) >> bits - 9
    else:
        shallow = deep.view(np.uint32 if bits == 32 else deep.dtype) >> bits - 8
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # 0 is white
        shallow = 255 - shallow
    shallow[deep == image.info.get("transparency", -1)] = 255
    return Image.fromarray(shallow.astype(np.uint8))


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


def is_lossless(path: Path) -> bool:
    """Return whether a picture is stored without loss, by its content. Raises OSError."""
    with open_regular(path) as file, Image.open(file, formats=image_formats(path)) as image:
        if image.format != "WEBP":
            return image.format not in LOSSY
        file.seek(12)
        while len(head := file.read(8)) == 8 and head[:4] not in WEBP_PIXELS:
            size = int.from_bytes(head[4:], "little")
            # A frame of an animation has its chunks behind 16 bytes.
            file.seek(16 if head[:4] == b"ANMF" else size + size % 2, os.SEEK_CUR)
    return WEBP_PIXELS.get(head[:4], False)

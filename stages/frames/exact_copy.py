"""Writes a picture as the model saw it, for readers that only open it: upright, on white, in sRGB
of 8 bits."""

from pathlib import Path
from typing import Any

from PIL import Image

from stages.frames.image import differs, read_image

LOSSLESS = frozenset((".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"))
"""Suffixes of pictures that lose nothing; their copies are PNG."""
DAMAGED = "damaged"
QUALITY = 95
WEBP_HEAD, LOSSLESS_WEBP = 64, b"VP8L"
"""Bytes at the start of a WebP that name its chunks, and the name of one without loss."""


def copy_picture(path: Path, to: Path, damaged: bool, *, always: bool) -> dict[str, Any]:
    """Write an exact copy of a picture to `to` plus a suffix, if readers would show another one, if
    it is `damaged`, or `always`. Return what became of it. Raises MediaError, OSError."""
    why = differs(path) or DAMAGED * damaged
    found: dict[str, Any] = {"why": why, "plain": not why}
    if not why and not always:
        return found
    _, chunk = read_image(path)
    image, is_lossless = Image.fromarray(chunk.pixels[0]), _is_lossless(path)
    made = to.with_name(f"{to.name}.{'png' if is_lossless else 'jpg'}")
    half = made.with_suffix(".half")
    if is_lossless:
        image.save(half, "PNG", compress_level=4)
    else:
        image.save(half, "JPEG", quality=QUALITY, subsampling="4:4:4")
    half.replace(made)  # a finished copy of a killed run is taken over
    return {**found, "file": made.name, "start": 0.0}


def _is_lossless(path: Path) -> bool:
    if path.suffix.lower() != ".webp":
        return path.suffix.lower() in LOSSLESS
    with path.open("rb") as file:
        return LOSSLESS_WEBP in file.read(WEBP_HEAD)

"""Tells the formats of images by which Pillow opens them, and HEIC from AVIF by its brands."""

from pathlib import Path

from artifacts.errors import MediaError, MissingPackage
from artifacts.packages import require_extra

PILLOW = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "PPM",
    "WEBP",
    "TIFF",
    "AVIF",
    "DIB",
    "JPEG2000",
    "TGA",
    "ICO",
    "PCX",
    "SGI",
    "DDS",
    "PSD",
    "QOI",
)
"""Image formats that Pillow reads without starting another program, as it would for EPS. The first
five need no plug-in."""
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
"""Brands after `ftyp` in an iPhone's image."""
AVIF_BRANDS = (b"avif", b"avis")
"""Brands of images that Pillow reads, whatever brand precedes them."""
BRANDS_BYTES = 64
"""Bytes at the start that hold the brands of an image."""


def image_formats(path: Path) -> tuple[str, ...]:
    """Return the Pillow formats to try for an image. If it looks like HEIC, load that plug-in.
    Raises OSError, and MediaError if it is not installed."""
    if not is_heic(path):
        return PILLOW
    try:
        require_extra("heif", str(path))
    except MissingPackage as error:
        raise MediaError(error.message, kind="needs-package", hint=error.hint) from error
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    return ("HEIF",)


def is_heic(path: Path) -> bool:
    """Return whether a file begins like an iPhone's image. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(BRANDS_BYTES)
    end = min(len(start), int.from_bytes(start[:4]))
    brands = [start[at : at + 4] for at in range(8, end, 4)]
    if start[4:8] != b"ftyp" or any(brand in AVIF_BRANDS for brand in brands):
        return False
    return start[8:12] in HEIC_BRANDS

"""Converts pictures with a colour profile to sRGB, by lcms."""

import io
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image, ImageCms

KEPT = 64
"""Transforms that a process keeps; pictures of one camera share a profile."""
GRID = tuple(round(255 * step / 8) for step in range(9))
"""Levels of the colours by which a profile is compared with sRGB."""
ALPHA = {"LA": "L", "PA": "RGB", "RGBA": "RGB"}
"""Mode with alpha → that of its colours."""


def in_srgb(image: Image.Image) -> tuple[Image.Image, str]:
    """Return a picture of an 8-bit mode in sRGB, and a warning if its profile is damaged; the
    picture itself if it has no profile, or one that differs from sRGB by at most one level."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode == "1":
        return image, ""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    mode = ALPHA.get(image.mode, "RGB" if image.mode == "P" else image.mode)
    try:
        transform = _transform(profile, mode)
        if transform is None:
            return image, ""
        colours = image if image.mode == mode else image.convert(mode)
        converted = ImageCms.applyTransform(colours, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image, "its colour profile is damaged, or none of its kind of picture: ignored"
    assert converted is not None
    converted.info = {}
    if alpha is not None:
        converted.putalpha(alpha)
    return converted, ""


@lru_cache(maxsize=KEPT)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a profile to sRGB; None if it changes nothing. Raises PyCMSError."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode != "RGB":
        return transform
    colours = np.array(list(product(GRID, repeat=3)), np.uint8).reshape(-1, 9, 3)
    moved = ImageCms.applyTransform(Image.fromarray(colours), transform)
    away = np.abs(np.asarray(moved).astype(int) - colours)
    return None if away.max() <= 1 else transform

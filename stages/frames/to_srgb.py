"""Converts the colours of pictures to those of a usual screen.

A usual screen shows sRGB. swscale converts high dynamic range, and lcms converts the colours of a
colour profile or of named primaries that are wider. swscale maps high dynamic range where both
transfer curves and primaries are named. It builds a table for that, in seconds, and builds it anew
for another size. The mapped value of a pixel depends on no other pixel. So one converter per curve
gets all pixels, in strips of one shape.
"""

import io
import re
import struct
import threading
from functools import cache, lru_cache
from itertools import product
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

if TYPE_CHECKING:
    from av.video.reformatter import VideoReformatter


HIGH_DYNAMIC_RANGE = frozenset((16, 18))
"""The transfer curves PQ and HLG, by their number in ITU-T H.273. Without tone mapping they look
washed out."""
BT2020 = 9
"""The primaries of BT.2020, by their number there."""
UNSTATED = frozenset((0, 2))
"""Transfer curves, and primaries, that say nothing."""
WIDE = {
    BT2020: (
        (0.67348, 0.27904, -0.00193),
        (0.16567, 0.67534, 0.02998),
        (0.12505, 0.04561, 0.79685),
    ),
    11: ((0.48616, 0.22668, -0.0008), (0.32385, 0.71033, 0.04324), (0.15419, 0.06298, 0.78247)),
    12: ((0.51512, 0.24119, -0.00105), (0.29198, 0.69224, 0.04188), (0.1571, 0.06657, 0.78407)),
}
"""Primaries of BT.2020, of P3 with the white of cinemas, and of Display P3 → X, Y and Z of red,
green and blue, adapted to D50 by Bradford's matrix. Source: ITU-T H.273, table 2."""
UNSTATED_BT2020 = "it states the colours of BT.2020 and no transfer curve: shown as they are"
STRIP = (64, 1024)
"""Height and width of a strip."""
_lock = threading.Lock()
HEAD_BYTES = 1 << 16
"""Bytes of an AVIF that hold its properties, before its pixels."""
NCLX = re.compile(rb"colrnclx(....)", re.DOTALL)
"""The `colr` box with primaries and curve, two bytes each. Source: ISO/IEC 14496-12, 12.1.5."""
KEPT = 64
"""Transforms that a process keeps; pictures of one camera share a profile."""
GRID = tuple(round(255 * step / 8) for step in range(9))
"""Levels of the colours by which a profile is compared with sRGB."""
ALPHA = {"LA": "L", "PA": "RGB", "RGBA": "RGB"}
"""Mode with alpha → that of its colours."""


@cache
def _toner(curve: int, primaries: int) -> "VideoReformatter":
    from av.video import reformatter  # pictures of other curves are read without PyAV

    return reformatter.VideoReformatter()


def toned(pixels: NDArray[np.uint16], curve: int, primaries: int) -> NDArray[np.uint8]:
    """Return pixels [height, width, 3] of 16 bits, in RGB with this transfer curve, as a usual
    screen shows them. Unknown primaries are those of BT.2020. Raises FFmpegError."""
    from av.video.frame import VideoFrame
    from av.video.reformatter import ColorPrimaries, ColorTrc

    if primaries in UNSTATED or primaries not in list(ColorPrimaries):
        primaries = BT2020
    flat, size = pixels.reshape(-1, 3), STRIP[0] * STRIP[1]
    out = np.empty(flat.shape, np.uint8)
    strip = np.zeros((size, 3), np.uint16)
    for at in range(0, len(flat), size):
        count = len(flat[at : at + size])
        strip[:count] = flat[at : at + count]
        frame = VideoFrame.from_ndarray(strip.reshape(*STRIP, 3), format="rgb48le")
        frame.color_trc, frame.color_primaries, frame.colorspace = curve, primaries, 0
        with _lock:
            mapped = _toner(curve, primaries).reformat(
                frame,
                format="rgb24",
                dst_color_trc=ColorTrc.BT709,
                dst_color_primaries=ColorPrimaries.BT709,
                threads=1,
            )
        out[at : at + count] = mapped.to_ndarray().reshape(-1, 3)[:count]
    return out.reshape(pixels.shape)


def curve_of(image: Image.Image, file: IO[bytes]) -> tuple[int, int]:
    """Return the transfer curve and the primaries that a picture states, by their numbers in
    ITU-T H.273; 0 for none. `file` holds the picture, and stays where it is."""
    at = file.tell()
    try:
        file.seek(0)
        if image.format == "PNG":
            return _of_png(file)
        if image.format == "AVIF":
            match = NCLX.search(file.read(HEAD_BYTES))
            primaries, curve = struct.unpack(">HH", match[1]) if match else (0, 0)
            return curve, primaries
    finally:
        file.seek(at)
    nclx = image.info.get("nclx_profile") or {}  # of HEIC
    return int(nclx.get("transfer_characteristics", 0)), int(nclx.get("color_primaries", 0))


def _of_png(file: IO[bytes]) -> tuple[int, int]:
    """Return the same from a `cICP` chunk. Source: PNG (Third Edition), 11.3.2.6."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"cICP" and length == 4:
            primaries, curve, _, _ = file.read(4)
            return curve, primaries
        if name == b"IDAT":
            break
        file.seek(length + 4, 1)
    return 0, 0


def wide_in_srgb(pixels: NDArray[np.uint8], curve: int, primaries: int) -> NDArray[np.uint8]:
    """Return RGB pixels [height, width, 3] in sRGB, if the primaries are wider and the curve is
    none of high dynamic range."""
    if primaries not in WIDE:
        return pixels
    return np.asarray(in_srgb(Image.fromarray(pixels), curve, primaries)[0])


def in_srgb(image: Image.Image, curve: int, primaries: int) -> tuple[Image.Image, str]:
    """Return a picture of an 8-bit mode in sRGB, and a warning if its profile is damaged. A profile
    counts before the curve and primaries, and none of high dynamic range. Return the picture itself
    if it has neither, or what differs from sRGB by at most one level."""
    if curve in HIGH_DYNAMIC_RANGE or image.mode == "1":
        return image, ""
    profile = image.info.get("icc_profile")
    if not profile:
        if curve in UNSTATED and primaries == BT2020:
            return image, UNSTATED_BT2020
        if primaries not in WIDE or image.mode in ("L", "LA"):
            return image, ""
        profile = _wide_profile(primaries)
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


@cache
def _wide_profile(primaries: int) -> bytes:
    """Return the profile of sRGB with other primaries."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    colours = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), WIDE[primaries], strict=True))
    for number in range(*struct.unpack_from(">I", profile, 128)):
        name, at = struct.unpack_from(">4sI", profile, 132 + 12 * number)
        if name in colours:
            values = (round(value * 65536) for value in colours[name])
            struct.pack_into(">3i", profile, at + 8, *values)
    return bytes(profile)


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

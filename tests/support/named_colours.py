"""Pictures that name their transfer curve and primaries, by their numbers in ITU-T H.273."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


def with_cicp(png: bytes, curve: int, primaries: int = 9) -> bytes:
    content = b"cICP" + bytes((primaries, curve, 0, 1))
    chunk = struct.pack(">I", 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:33] + chunk + png[33:]  # behind the signature and IHDR


def write(path: Path, pixels: NDArray[np.uint8], curve: int, primaries: int = 9) -> None:
    image, file = Image.fromarray(pixels), io.BytesIO()
    if path.suffix == ".png":
        image.save(file, "PNG")
        path.write_bytes(with_cicp(file.getvalue(), curve, primaries))
    elif path.suffix == ".avif":
        image.save(file, "AVIF", quality=100, subsampling="4:4:4")
        content = bytearray(file.getvalue())
        struct.pack_into(">HH", content, content.index(b"colrnclx") + 8, primaries, curve)
        path.write_bytes(content)
    else:
        pillow_heif = pytest.importorskip("pillow_heif")
        made = pillow_heif.from_pillow(image)
        stated = {"color_primaries": primaries, "transfer_characteristics": curve}
        made.save(path, quality=100, chroma=444, matrix_coefficients=9, **stated)

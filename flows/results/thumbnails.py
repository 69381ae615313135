"""Makes thumbnails of media for pages."""

import base64
import io
from pathlib import Path
from typing import Any

from artifacts.remote.media_cache import open_local

SIDE = 320
"""Pixels of the longer side of a thumbnail."""
QUALITY = 70
FRAMES_TRIED = 600
"""Maximum frames decoded from the preceding key frame to the requested one."""
NEAR_SECONDS = 0.02


def thumbnail(source: str | Path, time: float | None, side: int = SIDE) -> bytes | None:
    """Return a JPEG of an image, or of a video's frame at a time in seconds. `side`: pixels of the
    longer side. `source`: path or address. Return None if the source cannot be read, so that one
    bad file does not fail a page."""
    from PIL import Image, ImageOps

    try:
        with (
            open_local(source) as path,
            _open_image(path, side) if time is None else _frame(path, time) as image,
        ):
            small = ImageOps.exif_transpose(image)
            small.thumbnail((side, side))
            out = io.BytesIO()
            small.convert("RGB").save(out, "JPEG", quality=QUALITY)
            return out.getvalue()
    except (Exception, Image.DecompressionBombError):
        return None


def data_address(source: str | Path, time: float | None, side: int = SIDE) -> str:
    """Return the same as a `data:` address; empty if the source cannot be read."""
    small = thumbnail(source, time, side)
    return "" if small is None else "data:image/jpeg;base64," + base64.b64encode(small).decode()


def _open_image(path: Path, side: int) -> Any:
    from PIL import Image

    from stages.frames.formats import image_formats

    image = Image.open(path, formats=image_formats(Path(path)))
    image.draft("RGB", (2 * side, 2 * side))
    return image


def _frame(path: Path, time: float) -> Any:
    from artifacts.containers import open_media
    from stages.frames.formats import OPTIONS

    with open_media(path, options=OPTIONS) as container:
        stream = container.streams.video[0]
        first = float((stream.start_time or 0) * (stream.time_base or 0))
        container.seek(int((first + time) * 1_000_000), backward=True)
        shown: Any = None
        for tried, frame in enumerate(container.decode(stream)):
            shown = frame
            reached = frame.time is not None and frame.time - first >= time - NEAR_SECONDS
            if reached or tried >= FRAMES_TRIED:
                break
        if shown is None:
            raise ValueError("no frame")
        return shown.to_image()

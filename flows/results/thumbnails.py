"""Makes thumbnails of media for pages."""

import base64
import io
from itertools import chain
from pathlib import Path
from typing import Any

from artifacts.remote.media_cache import open_local
from artifacts.schema import FrameFit

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
    from PIL import Image

    from stages.frames.image import read_image

    try:
        with open_local(source) as path:
            fit = FrameFit(long_edges=((1.0, side),), shrinks=True)
            pixels = read_image(path, fit)[1].pixels[0] if time is None else _frame(path, time, fit)
            small = Image.fromarray(pixels)
            small.thumbnail((side, side))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=QUALITY)
            return out.getvalue()
    except Exception:
        return None


def data_address(source: str | Path, time: float | None, side: int = SIDE) -> str:
    """Return the same as a `data:` address; empty if the source cannot be read."""
    small = thumbnail(source, time, side)
    return "" if small is None else "data:image/jpeg;base64," + base64.b64encode(small).decode()


def _frame(path: Path, time: float, fit: FrameFit) -> Any:
    from stages.frames.frame_converter import FrameConverter, shown_size
    from stages.frames.opening import decoder_of, open_video

    container, stream = open_video(path, threads=1)
    with container:
        decode = decoder_of(stream).decode
        first = float((stream.start_time or 0) * (stream.time_base or 0))
        container.seek(int((first + time) * 1_000_000), backward=True)
        shown: Any = None
        for tried, frame in enumerate(chain.from_iterable(map(decode, container.demux(stream)))):
            shown = frame
            reached = frame.time is not None and frame.time - first >= time - NEAR_SECONDS
            if reached or tried >= FRAMES_TRIED:
                break
        if shown is None:
            raise ValueError("no frame")
        size = fit.size(*shown_size(shown, stream.sample_aspect_ratio))
        return FrameConverter(shown, size).convert(shown)

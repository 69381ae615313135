"""Makes thumbnails of media for pages."""

import base64
import contextlib
import io
import math
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
BACK_SECONDS = (0, 2, 10, 60, math.inf)
"""Seconds before the frame where decoding begins, tried until one is early enough: in broadcasts a
seek leads to any packet, and only a later keyframe can be decoded."""


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

    shown, aspect = shown_at(path, time)
    converter = FrameConverter(shown, fit.size(*shown_size(shown, aspect)))
    pixels = converter.allocate(1)[0]
    converter.convert(shown, pixels)
    return pixels


def shown_at(path: Path, time: float) -> tuple[Any, Any]:
    """Return the frame of a video that begins at a time in seconds, or the next one, and the aspect
    of its pixels. Raises ValueError without a frame."""
    from stages.frames.opening import decoder_of, open_video, time_zero
    from stages.frames.survey import timed_frames

    shown: Any = None
    for back in BACK_SECONDS if math.isfinite(time) else ():
        container, stream = open_video(path, threads=1)
        with container:
            if time > back:
                with contextlib.suppress(OSError):  # not every format can seek
                    container.seek(int((time_zero(container) + time - back) * 1_000_000))
            first: float | None = None
            frames = timed_frames(container, stream, decoder_of(stream).decode)
            for tried, (at, frame) in enumerate(frames):
                shown, first = frame, at if first is None else first
                reached = at is not None and at >= time - NEAR_SECONDS
                if reached or tried >= FRAMES_TRIED:
                    break
            if time <= back or (first is not None and first <= time + NEAR_SECONDS):
                break
    if shown is None:
        raise ValueError("no frame")
    return shown, stream.sample_aspect_ratio

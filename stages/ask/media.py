"""Encodes the frames of a chunk as they are sent to a server."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.packs import Record
from artifacts.schema import FrameFit
from stages.ask import QUALITY

Pixels = NDArray[np.uint8]
TICKS = 1000
"""Ticks per second of a clip's clock."""
ENCODER = {"crf": "18", "preset": "veryfast", "threads": "1"}
"""Settings of H.264; one thread, so that the bytes are the same each time."""


def media_of(record: Record, kind: str, fit: FrameFit, *, video: bool) -> bytes:
    """Return the parts of a message with a chunk's frames, as JSON without brackets."""
    meta = record.meta
    height, width = int(meta["height"]), int(meta["width"])
    frames = np.frombuffer(record.payload, np.uint8).reshape(-1, height, width, 3)
    size = fit.size(height, width)
    if video and kind == "video":
        times = [float(time) - float(meta["start"]) for time in meta["times"]]
        parts = [part("video_url", "video/mp4", clip(frames, times, size))]
    else:
        parts = [part("image_url", "image/jpeg", picture(frame, size)) for frame in frames]
    return ", ".join(parts).encode()


def part(kind: str, media_type: str, content: bytes) -> str:
    """Return one part of a message with a medium."""
    address = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    return json.dumps({"type": kind, kind: {"url": address}})


def picture(frame: Pixels, size: tuple[int, int]) -> bytes:
    """Return a frame as JPEG, at most of that height and width."""
    image = _fitted(frame, size)
    made = io.BytesIO()
    image.save(made, "JPEG", quality=QUALITY)
    return made.getvalue()


def clip(frames: Pixels, times: Sequence[float], size: tuple[int, int]) -> bytes:
    """Return frames as H.264 in MP4, each shown at its time."""
    import av

    made = io.BytesIO()
    with av.open(made, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=TICKS, options=ENCODER)
        # Its colours have one value per two by two pixels.
        stream.height, stream.width = (max(2, side // 2 * 2) for side in size)
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        for pixels, tick in zip(frames, _ticks(times), strict=True):
            image = np.asarray(_fitted(pixels, (stream.height, stream.width)))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return made.getvalue()


def _ticks(times: Sequence[float]) -> Iterator[int]:
    """Yield ticks that grow from frame to frame."""
    last = -1
    for time in times:
        last = max(last + 1, round(max(0.0, time) * TICKS))
        yield last


def _fitted(frame: Pixels, size: tuple[int, int]) -> Image.Image:
    image, (height, width) = Image.fromarray(frame), size
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)

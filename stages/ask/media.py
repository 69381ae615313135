"""Encodes the frames of a chunk as they are sent to a server."""

import base64
import io
import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.packs import Record
from artifacts.schema import FrameFit
from stages.ask import QUALITY

TICK = Fraction(1, 1000)
"""Seconds of a clip's clock."""
ENCODER = {"crf": "18", "preset": "veryfast", "threads": "1"}
"""Settings of H.264; one thread, so that the bytes are the same each time."""


def media_of(record: Record, kind: str, fit: FrameFit, *, video: bool) -> bytes:
    """Return the parts of a message with a chunk's frames, as JSON without brackets."""
    height, width = int(record.meta["height"]), int(record.meta["width"])
    frames = np.frombuffer(record.payload, np.uint8).reshape(-1, height, width, 3)
    height, width = fit.size(height, width)
    if video and kind == "video":
        height, width = (max(2, side // 2 * 2) for side in (height, width))  # 2 by 2 pixels share
    resized = (_resized(frame, height, width) for frame in frames)  # a colour in a video
    if video and kind == "video":
        return part("video_url", "video/mp4", clip([*resized], record.meta["times"]))
    return b", ".join(part("image_url", "image/jpeg", _jpeg(image)) for image in resized)


def part(kind: str, media_type: str, content: bytes) -> bytes:
    """Return one part of a message with a medium."""
    address = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    return json.dumps({"type": kind, kind: {"url": address}}).encode()


def clip(images: Sequence[Image.Image], times: Sequence[float]) -> bytes:
    """Return images of one size as H.264 in MP4, each shown at its time."""
    import av

    made, last = io.BytesIO(), -1
    with av.open(made, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=1 / TICK, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = *images[0].size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = TICK
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            last = max(last + 1, round((float(time) - float(times[0])) / TICK))
            frame.pts, frame.time_base = last, TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return made.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    made = io.BytesIO()
    image.save(made, "JPEG", quality=QUALITY)
    return made.getvalue()


def _resized(frame: NDArray[np.uint8], height: int, width: int) -> Image.Image:
    image = Image.fromarray(frame)
    same = image.size == (width, height)
    return image if same else image.resize((width, height), Image.Resampling.LANCZOS)

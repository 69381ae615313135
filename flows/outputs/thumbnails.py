"""Makes thumbnails of media for pages, and embeds them."""

import base64
import contextlib
import io
import os
from array import array
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from artifacts.disk.stamps import Stamp, stamp_of
from artifacts.frame_fit import FrameFit
from artifacts.remote.media_cache import open_local
from stages.process.host_memory import cores

if TYPE_CHECKING:
    from fractions import Fraction

    import numpy as np
    from av import VideoFrame
    from numpy.typing import NDArray

    from flows.outputs.media_rows import PageCaption, PageMedium
    from stages.frames.timeline import Timeline

SIDE = 320
"""Pixels of the longer side of a thumbnail."""
QUALITY = 70
NEAR_SECONDS = 0.002
"""Times are rounded by less."""
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Formats with reliable times and seeks. Other files are read whole once, as for their frames."""


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


EMBEDDED_BYTES = 20_000_000
"""Most characters of all thumbnails in a page. Media that come later have links only."""
EMBEDDED_SIDE = 240
"""Pixels of the longer side of one of them."""
TOGETHER = 64
"""Thumbnails that are made between two looks at the limit."""


def embed_thumbnails(media: "list[PageMedium[PageCaption]]", folder: Path) -> None:
    """Add `small`, the address of a thumbnail with its data, to the first media of a page in
    `folder`: of a video, the middle of its first caption."""

    def small(medium: "PageMedium[PageCaption]") -> str:
        start, end = next(((row.start, row.end) for row in medium["captions"]), (0.0, 0.0))
        middle = None if medium["kind"] == "image" else (start + max(start, end)) / 2
        return data_address(
            folder / os.fsdecode(unquote_to_bytes(medium["url"] or "")), middle, EMBEDDED_SIDE
        )

    remaining_bytes, present = EMBEDDED_BYTES, [medium for medium in media if not medium["gone"]]
    with ThreadPoolExecutor(cores()) as pool:
        for at in range(0, len(present), TOGETHER):
            if remaining_bytes <= 0:
                break
            batch = present[at : at + TOGETHER]
            for medium, address in zip(batch, pool.map(small, batch), strict=True):
                remaining_bytes -= len(address)
                medium["small"] = address if remaining_bytes >= 0 else ""


def _frame(path: Path, time: float, fit: FrameFit) -> "NDArray[np.uint8]":
    from stages.frames.frame_converter import FrameConverter, shown_size

    shown, aspect = shown_at(path, time)
    return FrameConverter(shown, fit.size(*shown_size(shown, aspect))).convert(shown)


def shown_at(path: Path, time: float) -> tuple["VideoFrame", "Fraction | None"]:
    """Return the frame of a video that begins at a time in seconds, or the next one, and the aspect
    of its pixels. Raises ValueError without a frame."""
    from stages.frames.reader import Reader
    from stages.frames.timeline import tick_from

    if (sought := _sought(path, time)) is not None:
        return sought
    timeline = _timeline(path, stamp_of(path))
    at = int(timeline.pts.searchsorted(tick_from(timeline, time - NEAR_SECONDS)))
    ticks = int(timeline.pts[min(at, len(timeline.pts) - 1)])
    with contextlib.closing(Reader(path, threads=1, timeline=timeline)) as reader:
        reader.request(array("q", [ticks]))
        decoded = reader.at(ticks, timeline.start, int(timeline.pts[-1]) + 1)
        if decoded is None:
            raise ValueError("no frame")
        return decoded[1], reader.decoder.stream.sample_aspect_ratio


@lru_cache(maxsize=16)
def _timeline(path: Path, stamp: Stamp) -> "Timeline":
    from stages.frames.reader import Reader

    with contextlib.closing(Reader(path, threads=1)) as reader:
        return reader.timeline


def _sought(path: Path, time: float) -> "tuple[VideoFrame, Fraction | None] | None":
    """Return the same after one seek, without reading the whole file. Return None where the format
    may state wrong times, and where that fails."""
    import av

    from stages.frames.media_opening import decoder_of, open_video, time_zero
    from stages.frames.reader import deinterlaced

    container, stream = open_video(path, threads=1)
    with container, contextlib.suppress(av.error.FFmpegError, IndexError, TypeError):
        if container.format.name in INDEXED:
            zero, decode = float(time_zero(container)), decoder_of(stream).decode
            container.seek(int((zero + time) * 1_000_000))
            frames = chain.from_iterable(map(decode, container.demux(stream)))
            before = None
            for frame in frames:
                late = frame.time - zero - time  # TypeError without a time
                if late >= -NEAR_SECONDS:
                    if before is None and late > NEAR_SECONDS:
                        return None
                    after = next(frames, None) if frame.interlaced_frame else None
                    return deinterlaced(frame, before, after), stream.sample_aspect_ratio
                before = frame
    return None

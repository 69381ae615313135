"""Converts decoded frames to RGB images as a player shows them, at one fixed size."""

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import (
    ColorPrimaries,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from numpy.typing import NDArray

from artifacts.errors import MediaError
from artifacts.schema import FrameFit

FILTER = Interpolation.BICUBIC
"""swscale scales this filter with the image, so downscaling does not alias."""
SQUARE_ENOUGH = 0.01
"""Frames whose pixel aspect differs from 1 by at most this are not stretched."""

HIGH_DYNAMIC_RANGE = frozenset((ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67))
"""The transfer curves PQ and HLG. Without tone mapping they look washed out."""
MATRICES = frozenset((0, 1, 2, 4, 5, 6, 7, 9))
"""Matrices from YUV to RGB, by their number in ITU-T H.273, that swscale supports. It refuses
frames with any other matrix."""
BT2020_LIKE = frozenset((10, 13, 14))
"""Unsupported matrices that are close to BT.2020; all others are treated as BT.709."""


class FrameConverter:
    """Converts all frames of one video to a single size, even where the video changes its own."""

    def __init__(self, frame: VideoFrame, pixel_aspect: Fraction | None, fit: FrameFit) -> None:
        self.mirrored = _is_mirrored(frame)
        """Whether left and right are swapped before the rotation."""
        # FFmpeg derives the rotation from the x axis, which mirroring reverses.
        self.turns = (round(frame.rotation / 90) + 2 * self.mirrored) % 4
        """Counter-clockwise quarter turns that make the image upright."""
        self.shown_height, self.shown_width = shown_size(frame, pixel_aspect)
        """Size in pixels as a player shows it."""
        self.height, self.width = fit.size(self.shown_height, self.shown_width)
        """Size in pixels of the output of `convert`."""
        self._reformatter, self._toner = VideoReformatter(), VideoReformatter()

    def allocate(self, count: int) -> NDArray[np.uint8]:
        """Return an uninitialized array for `count` images, [count, height, width, 3]."""
        return np.empty((count, self.height, self.width, 3), dtype=np.uint8)

    def convert(self, frame: VideoFrame, out: NDArray[np.uint8]) -> None:
        """Convert a frame into `out` [height, width, 3]. Raises MediaError."""
        height, width = self.height, self.width
        if self.turns % 2:
            height, width = width, height
        hdr = frame.color_trc in HIGH_DYNAMIC_RANGE
        matrix = None
        if frame.colorspace not in MATRICES:
            matrix = Colorspace.BT2020 if frame.colorspace in BT2020_LIKE else Colorspace.ITU709
        try:
            image = self._reformatter.reformat(
                frame,
                width=width,
                height=height,
                format="rgb48le" if hdr else "rgb24",
                src_colorspace=matrix,
                dst_colorspace=matrix,
                interpolation=FILTER,
                threads=1,
            )
            if hdr:
                image = self._mapped(image)
        except av.error.FFmpegError as error:
            # Some of these errors are subclasses of OSError.
            raise MediaError(
                f"frames of format {frame.format.name} cannot be converted ({error})",
                kind="no-decoder",
                hint="Convert it, for example to H.264 in MP4",
            ) from error
        pixels = image.to_ndarray()
        out[...] = np.rot90(pixels[:, ::-1] if self.mirrored else pixels, self.turns)

    def _mapped(self, image: VideoFrame) -> VideoFrame:
        """Map HDR to standard dynamic range; swscale does so if both transfer curves and primaries
        are named. At the output size this takes 1 ms, at 4K 100 ms."""
        image.colorspace = 0
        if image.color_primaries not in list(ColorPrimaries):
            image.color_primaries = ColorPrimaries.BT2020
        return self._toner.reformat(
            image,
            format="rgb24",
            dst_color_trc=ColorTrc.BT709,
            dst_color_primaries=ColorPrimaries.BT709,
            threads=1,
        )


def _is_mirrored(frame: VideoFrame) -> bool:
    """Return whether the file asks for a mirrored image, with or without rotation."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False
    # (x, y) is shown at (a x + c y, b x + d y); nine 32-bit numbers in native byte order.
    a, b, _, c, d, *_ = np.frombuffer(data, dtype=np.int32).tolist()
    return bool(a * d - b * c < 0)


def shown_size(frame: VideoFrame, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Return (height, width) in pixels after pixel aspect and rotation."""
    height, width = frame.height, frame.width
    aspect = float(pixel_aspect or 1) or 1.0
    if abs(aspect - 1) > SQUARE_ENOUGH:
        width = max(1, round(width * aspect))
    return (width, height) if round(frame.rotation / 90) % 2 else (height, width)

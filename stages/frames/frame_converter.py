"""Converts decoded frames to images as a player shows them, at one fixed size."""

import contextlib
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from artifacts.errors import MediaError
from stages.frames.image import TURNS, turn, turned_size, upright_rgb
from stages.frames.to_srgb import HIGH_DYNAMIC_RANGE, toned, wide_in_srgb

FILTER = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
"""swscale scales the filter with the image, so downscaling does not alias. Without the flags,
chroma has half the width of the output, and rounding darkens by one level."""
PLANAR, PLANAR_ALPHA, PLANAR_DEEP = "gbrp", "gbrap", "gbrp16le"
"""Formats of scaled frames, before they are repacked: to a packed one, the flags cost three times
as much."""
SQUARE_ENOUGH = 0.01
"""Frames whose pixel aspect differs from 1 by at most this are not stretched."""

MATRICES = frozenset((0, 1, 2, 4, 5, 6, 7, 9))
"""Matrices from YUV to RGB, by their number in ITU-T H.273, that swscale supports. It refuses
frames with any other matrix."""
BT2020_LIKE = frozenset((10, 13, 14))
"""Unsupported matrices that are close to BT.2020; all others are treated as BT.709."""


class FrameConverter:
    """Converts all frames of one video to a single size, even where the video changes its own."""

    def __init__(self, frame: VideoFrame, size: tuple[int, int], *, grey: bool = False) -> None:
        """`frame`: one of them; `size`: upright (height, width) in pixels of the output; `grey`:
        brightness alone, reduced by the mean of areas."""
        self.size = size
        self._orientation = orientation_of(frame)
        self._form, self._filter = ("gray", Interpolation.AREA) if grey else (PLANAR, FILTER)
        self._reformatter, self._packer = VideoReformatter(), VideoReformatter()

    def allocate(self, count: int) -> NDArray[np.uint8]:
        """Return an empty array [count, height, width, 3]; that of grey images has no last axis."""
        channels = () if self._form == "gray" else (3,)
        return np.empty((count, *self.size, *channels), dtype=np.uint8)

    def convert(self, frame: VideoFrame, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Convert a frame into `out` [height, width, 3] or a new image. Raises MediaError."""
        height, width = turned_size(self.size, self._orientation)
        hdr = frame.color_trc in HIGH_DYNAMIC_RANGE and self._form == PLANAR
        try:
            frame = opaque(frame)
            matrix = matrix_of(frame)
            image = self._reformatter.reformat(
                frame,
                width=width,
                height=height,
                format=PLANAR_DEEP if hdr else self._form,
                src_colorspace=matrix,
                dst_colorspace=matrix,
                interpolation=self._filter,
                threads=1,
            )
            if self._form == PLANAR and not hdr:
                image = self._packer.reformat(image, format="rgb24", threads=1)
            pixels: NDArray[Any] = image.to_ndarray()
            if hdr:
                pixels = toned(pixels, image.color_trc, image.color_primaries)
            elif self._form == PLANAR:
                pixels = wide_in_srgb(pixels, frame.color_trc, frame.color_primaries)
        except av.error.FFmpegError as error:
            # Some of these errors are subclasses of OSError.
            raise MediaError(
                f"frames of format {frame.format.name} cannot be converted ({error})",
                kind="no-decoder",
                hint="Convert it, for example to H.264 in MP4",
            ) from error
        out = self.allocate(1)[0] if out is None else out
        turn(np.asarray(pixels, np.uint8), self._orientation, out)
        return out


def opaque(frame: VideoFrame) -> VideoFrame:
    """Return a frame on white in its own size; the frame itself if nothing in it is transparent."""
    form = frame.format
    if not form.has_palette and not any(component.is_alpha for component in form.components):
        return frame
    matrix = matrix_of(frame)
    planar = frame.reformat(
        format=PLANAR_ALPHA, src_colorspace=matrix, dst_colorspace=matrix, interpolation=FILTER
    )
    pixels = planar.to_ndarray(format="rgba")
    if pixels[..., 3].min(initial=255) == 255:
        return frame
    image = VideoFrame.from_ndarray(upright_rgb(Image.fromarray(pixels), 1), format="rgb24")
    image.color_trc, image.color_primaries = frame.color_trc, frame.color_primaries
    return image


def matrix_of(frame: VideoFrame) -> Colorspace | None:
    """Return the matrix with which a frame is converted; None: the one that it states."""
    if frame.colorspace in MATRICES:
        return None
    return Colorspace.BT2020 if frame.colorspace in BT2020_LIKE else Colorspace.ITU709


def orientation_of(frame: VideoFrame) -> int:
    """Return the EXIF orientation that the file's display matrix corresponds to."""
    determinant, data = 1, None
    with contextlib.suppress(ValueError):  # of a kind that PyAV does not know, such as EXIF
        data = frame.side_data.get("DISPLAYMATRIX")
    if data is not None:
        # (x, y) is shown at (a x + c y, b x + d y); nine 32-bit numbers in native byte order.
        a, b, _, c, d, *_ = np.frombuffer(cast(Any, data), dtype=np.int32).tolist()
        determinant = a * d - b * c
    if not determinant:
        return 1  # a matrix that shows nothing, such as one of zeros
    mirrored = determinant < 0
    # FFmpeg derives the rotation from the x axis, which mirroring reverses.
    turns = (round(frame.rotation / 90) + 2 * mirrored) % 4
    return next(number for number, pair in TURNS.items() if pair == (mirrored, turns))


def shown_size(frame: VideoFrame, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Return (height, width) in pixels after pixel aspect and rotation."""
    height, width = frame.height, frame.width
    aspect = float(pixel_aspect or 1) or 1.0
    if abs(aspect - 1) > SQUARE_ENOUGH:
        width = max(1, round(width * aspect))
    return turned_size((height, width), orientation_of(frame))

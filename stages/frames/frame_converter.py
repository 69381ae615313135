"""Converts decoded frames to images as a player shows them, at one fixed size.

Makes pixels look as a viewer shows them: upright, and white where they are transparent.

Pictures (`image.py`) and video frames (`frame_converter.py`) both come through here, so a model, a
thumbnail and a fingerprint have the same view of a file.
"""

import contextlib
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import (
    Colorspace,
    Interpolation,
    VideoReformatter,
)
from numpy.typing import NDArray
from PIL import Image

from artifacts.errors import MediaError
from stages.frames.formats import HIGH_DYNAMIC_RANGE, toned, wide_in_srgb

STRIP = 256
"""Rows that are copied from Pillow to NumPy at once. Copying all at once would hold the image three
times."""
TURNS = {
    1: (False, 0), 2: (True, 0), 3: (False, 2), 4: (True, 2),
    5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1),
}  # fmt: skip
"""EXIF orientation → whether left and right are swapped first, and the counter-clockwise quarter
turns that then make the stored pixels upright."""


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return two sides as they are after turning; the same call turns them back."""
    return size[::-1] if TURNS[orientation][1] % 2 else size


def turn(
    pixels: NDArray[np.uint8], orientation: int, out: NDArray[np.uint8], *, top: int = 0
) -> None:
    """Write stored pixels [rows, width, ...] upright into `out`, which holds the whole image;
    `top` is their first row in the file."""
    mirrored, turns = TURNS[orientation]
    stored = np.rot90(out, -turns)  # a view of `out` in which pixels lie as in the file
    stored = (stored[:, ::-1] if mirrored else stored)[top : top + len(pixels)]
    # A quarter turn of whole pixels takes three times as long as of one colour after another.
    for colour in np.ndindex(*pixels.shape[2:]) if turns % 2 else [()]:
        stored[(..., *colour)] = pixels[(..., *colour)]


def upright_rgb(image: Image.Image, orientation: int) -> NDArray[np.uint8]:
    """Return the pixels [height, width, 3] of an image of any 8-bit mode, upright and on white."""
    width, height = turned_size(image.size, orientation)
    upright = np.empty((height, width, 3), np.uint8)
    for top in range(0, image.height, STRIP):
        rows = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        turn(np.asarray(on_white(rows)), orientation, upright, top=top)
    return upright


def on_white(image: Image.Image) -> Image.Image:
    """Return an image of any 8-bit mode in RGB, on white."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


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
        """Return an uninitialized array for `count` images, [count, height, width, 3]; grey ones
        have no last axis."""
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
    if not form.has_palette and not any(each.is_alpha for each in form.components):
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
    return next(number for number, each in TURNS.items() if each == (mirrored, turns))


def shown_size(frame: VideoFrame, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Return (height, width) in pixels after pixel aspect and rotation."""
    height, width = frame.height, frame.width
    aspect = float(pixel_aspect or 1) or 1.0
    if abs(aspect - 1) > SQUARE_ENOUGH:
        width = max(1, round(width * aspect))
    return turned_size((height, width), orientation_of(frame))

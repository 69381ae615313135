"""Makes pixels look as a viewer shows them: upright, and white where they are transparent.

Pictures (`image.py`) and video frames (`frame_converter.py`) both come through here, so a model, a
thumbnail and a fingerprint have the same view of a file.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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

"""Limits images and frames to a number of pixels, through the processor's own limit.

Processors with dynamic resolution have a minimum and a maximum number of pixels, and resize an
image between them before cutting patches. Some count the pixels of a frame, some those of a pair of
equal frames, some those of all frames of a video. A test resize of tensors without data shows
which. Where the limit depends on the number of frames, it is set anew for each video.
"""

import inspect
import sys
from dataclasses import dataclass, replace
from functools import wraps
from math import ceil
from typing import Any

import torch

from stages.models.pixel_bounds import PixelBounds, below, limits_frames
from stages.models.protocols import Processor

FEW, MANY = 2, 8
"""Frame counts of two videos that show whether all their pixels are counted together."""
TOKENS = 32
"""Tokens along a side of the test frames: enough to make rounding negligible."""
MAX_TIMES = 2 * MANY
"""Maximum count of a frame; larger results come from processors without this limit."""
TRIED = ((2, 360, 640), (8, 1280, 720), (30, 1080, 1920), (60, 2160, 3840), (7, 333, 500))
"""Frames, height and width of videos on which `bounds_of` compares its result with the
processor's."""
BOUNDS = "_pixel_bounds"
"""Class attribute of a limited part that holds its bounds."""


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """Pixel limits that replace a processor's own."""

    image: int = 0
    """Requested maximum pixels per image or frame; 0: none."""
    video: int = 0
    """Requested maximum pixels of all frames of a video; 0: none."""
    frames: PixelBounds | None = None
    """The authors' bounds for videos, for a processor with tokens of the same size that counts the
    pixels of each frame."""


def own_sizes(processor: Processor) -> None:
    """Move the sizes that the processor would give its parts in each call into the parts. So
    `size` of a part is what applies, and a limit that is set there has an effect."""
    for name in ("images", "videos"):
        own = dict(getattr(processor, option := f"{name}_kwargs", {}))
        part = getattr(processor, f"{name.removesuffix('s')}_processor", None)
        if part is not None and (size := own.pop("size", None)):
            part.size = type(part.size)(**size)
            setattr(processor, option, own)


def min_pixels_of(processor: Processor) -> int:
    """Return the lowest pixel count to which an image can be limited: one token; 0 for a processor
    without such a limit."""
    sides = [_side(part) if _limited(part) else 0 for part in _parts(processor)]
    return max(sides, default=0) ** 2 if all(sides) else 0


def limit_pixels(processor: Processor, limits: PixelLimits) -> None:
    """Set limits on a processor. A processor without limits of its own is unchanged, and limits
    below one token are ignored: `check_pixels` refuses both."""
    token = min_pixels_of(processor)
    if not token:
        return
    video = getattr(processor, "video_processor", None)
    max_image_pixels, total = (n if n >= token else 0 for n in (limits.image, limits.video))
    for part in _parts(processor):
        if part is video:
            _limit_video(part, replace(limits, image=max_image_pixels, video=total))
        elif max_image_pixels:
            _set(part, max_image_pixels * _times(part, FEW))


def bounds_of(processor: Processor, edge: int, tokens: int) -> PixelBounds | None:
    """Return how the processor, as it was limited, bounds the pixels of a video. Return None if it
    resizes frames in another way, or if two squares of this edge do not become `tokens` each."""
    part = getattr(processor, "video_processor", None)
    if part is None or not _limited(part):
        return None
    bounds = _bounds(part)
    from transformers.image_utils import SizeDict

    size = SizeDict(shortest_edge=bounds.least, longest_edge=bounds.most)
    try:
        alike = all(_shown(part, *s, size) == bounds.size(*s) for s in TRIED)
    except Exception:  # it resizes in another way, and may fail in any way
        return None
    return bounds if alike and ceil(bounds.tokens(2, edge, edge) / 2) == tokens else None


def _parts(processor: Processor) -> list[Any]:
    parts = (getattr(processor, name, None) for name in ("image_processor", "video_processor"))
    return [part for part in parts if part is not None]


def _limited(part: Any) -> bool:
    """Return whether a part resizes by pixel counts."""
    rule = getattr(sys.modules.get(type(part).__module__), "smart_resize", None)
    named = _size_names(part)
    by_number = isinstance(getattr(part, "max_pixels", None), int)
    by_size = all(isinstance(named.get(edge), int) for edge in ("shortest_edge", "longest_edge"))
    return rule is not None and (by_size or by_number) and _side(part) > 0


def _size_names(part: Any) -> dict[str, Any]:
    size = getattr(part, "size", None)
    return dict(size) if size else {}


def _side(part: Any) -> int:
    """Return the side length in pixels of the square that becomes one token; 0 if unknown."""
    patch, merged = getattr(part, "patch_size", 0), getattr(part, "merge_size", 1)
    patch = patch or getattr(part, "spatial_factor", 0)
    return patch * merged if isinstance(patch, int) and isinstance(merged, int) else 0


def _limit_video(part: Any, limits: PixelLimits) -> None:
    bounds = replace(_bounds(part), per_video=limits.video)
    frames = limits.frames
    if frames is not None and limits_frames(bounds, frames):
        _set(part, frames.most * bounds.times, frames.least * bounds.times)
        bounds = replace(bounds, per_video=limits.video or frames.per_video)
    if not bounds.times:
        bounds = replace(bounds, per_frame=limits.image, beyond=bool(limits.video))
    elif limits.image:
        _set(part, limits.image * bounds.times)
    if bounds.per_video or bounds.per_frame:
        _limit_each(part, bounds)


def _set(part: Any, most: int, least: int = 0) -> None:
    """Set the maximum pixels of a part, as it counts them, and the minimum if given."""
    size = _size_names(part)
    if isinstance(getattr(part, "max_pixels", None), int):
        part.max_pixels = most
        part.min_pixels = below(least or part.min_pixels, most)
    if "longest_edge" in size:
        edges = {"shortest_edge": below(least or size["shortest_edge"], most), "longest_edge": most}
        part.size = type(part.size)(**{**size, **edges})


def _bounds(part: Any) -> PixelBounds:
    """Return the bounds of a video part, as it was limited."""
    size = _size_names(part)
    edges = {"least": size.get("shortest_edge", 0), "most": size.get("longest_edge", 0)}
    limited: PixelBounds | None = getattr(part, BOUNDS, None)
    if limited is not None:
        return replace(limited, **edges)
    few, many = (_times(part, count) for count in (FEW, MANY))
    together = many > 2 * few
    pair = getattr(part, "temporal_patch_size", 1)
    return PixelBounds(side=_side(part), times=0 if together else few, pair=pair, **edges)


def _times(part: Any, frames: int) -> int:
    """Return how many times the pixels of a frame count in a video of `frames` frames."""
    from transformers.image_utils import SizeDict

    side = _side(part) * TOKENS
    most = side**2
    try:
        size = SizeDict(shortest_edge=1, longest_edge=most)
        height, width = _shown(part, frames, 2 * side, 2 * side, size)
    except Exception:  # it resizes in another way, and may fail in any way
        return 1
    times = round(most / (height * width))
    return times if 1 <= times <= MAX_TIMES else 1


def _shown(part: Any, frames: int, height: int, width: int, size: Any) -> tuple[int, int]:
    """Return the height and width to which a part resizes such frames, or an image."""
    video = "video" in type(part).__module__.rsplit(".", 1)[-1]
    shape = (1, frames, 3, height, width) if video else (1, 3, height, width)
    known = {
        "size": size,
        "resample": getattr(part, "resample", None),
        "factor": _side(part),
        "temporal_factor": getattr(part, "temporal_patch_size", 1),
        "patch_size": getattr(part, "patch_size", None),
        "merge_size": getattr(part, "merge_size", None),
        "cap_pixels_per_frame": getattr(part, "cap_pixels_per_frame", None),
    }
    taken = inspect.signature(part.resize).parameters
    given = {n: v for n, v in known.items() if n in taken}
    shown = part.resize(torch.empty(shape, device="meta"), **given)
    return int(shown.shape[-2]), int(shown.shape[-1])


def _limit_each(part: Any, bounds: PixelBounds) -> None:
    """Give the part its own class, which sets the limit for each video by its frames."""
    cls = type(part)

    def resize(self: Any, *args: Any, size: Any, **kwargs: Any) -> Any:
        video = next(v for v in (*args, *kwargs.values()) if hasattr(v, "shape"))
        own = replace(bounds, least=size.shortest_edge, most=size.longest_edge)
        least, most = own.edges(int(video.shape[1]))
        resized = type(size)(shortest_edge=least, longest_edge=most)
        return cls.resize(self, *args, size=resized, **kwargs)

    more = {"resize": wraps(cls.resize)(resize), "__module__": cls.__module__, BOUNDS: bounds}
    part.__class__ = type(cls.__name__, (cls,), more)

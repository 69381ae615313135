"""Keeps pictures and frames to so many pixels, by the limit that a checkpoint's own processor has.

Processors that see a picture as large as it is have a least and a most number of pixels, between
which they resize it before it is cut in patches. Some count the pixels of a frame, some those of a
pair of equal frames, some those of all frames of a video together: which is found out by letting
the processor resize tensors without data. Where the most is that of a whole video it is set anew
for each, by its frames, and never above what the processor allows.
"""

import inspect
import sys
from typing import Any

import torch

FEW, MANY = 2, 8
"""Frames of two videos by which it is told whether all their pixels count together."""
TOKENS = 32
"""Tokens along a side of the frames that are tried: many, so that rounding does not count."""
MOST_TIMES = 2 * MANY
"""Times that a frame may count; more come of processors that do not resize by this limit."""


def least_pixels(processor: Any) -> int:
    """Return the least number of pixels that a picture can be kept to, which is one token; 0 for a
    processor without such a limit."""
    sides = [_side(part) if _limited(part) else 0 for part in _parts(processor)]
    return max(sides, default=0) ** 2 if all(sides) else 0


def limit_pixels(processor: Any, most: int) -> None:
    """Let the processor keep each picture, and each frame of a video, to so many pixels. One
    without such a limit, or of which a token has more, is left as it is: who asked is told."""
    if 0 < least_pixels(processor) <= most:
        for part in _parts(processor):
            _limit(part, most)


def _parts(processor: Any) -> list[Any]:
    found = (getattr(processor, name, None) for name in ("image_processor", "video_processor"))
    return [part for part in found if part is not None]


def _limited(part: Any) -> bool:
    """Tell whether a part resizes by numbers of pixels."""
    rule = getattr(sys.modules.get(type(part).__module__), "smart_resize", None)
    named = _size_names(part)
    by_number = isinstance(getattr(part, "max_pixels", None), int)
    by_size = all(isinstance(named.get(edge), int) for edge in ("shortest_edge", "longest_edge"))
    return rule is not None and (by_size or by_number) and _side(part) > 0


def _size_names(part: Any) -> dict[str, Any]:
    size = getattr(part, "size", None)
    return dict(size) if size else {}


def _side(part: Any) -> int:
    """Return the pixels of the side of what becomes one token; 0 where it is not told."""
    patch, merged = getattr(part, "patch_size", 0), getattr(part, "merge_size", 1)
    patch = patch or getattr(part, "spatial_factor", 0)
    return patch * merged if isinstance(patch, int) and isinstance(merged, int) else 0


def _limit(part: Any, most: int) -> None:
    few, many = (_times(part, count) for count in (FEW, MANY))
    if many > 2 * few:  # all frames count together
        _limit_each(part, most)
        return
    most *= few
    size = _size_names(part)
    if isinstance(getattr(part, "max_pixels", None), int):
        part.max_pixels = most
        part.min_pixels = _below(part.min_pixels, most)
    if "longest_edge" in size:
        least = _below(size["shortest_edge"], most)
        part.size = type(part.size)(**{**size, "shortest_edge": least, "longest_edge": most})


def _below(least: int, most: int) -> int:
    """Return the least number of pixels beside a most: what is made larger is rounded up."""
    return least if least <= most else most // 2


def _times(part: Any, frames: int) -> int:
    """Return how many times the pixels of a frame count where there are so many."""
    from transformers.image_utils import SizeDict

    side = _side(part) * TOKENS
    most = side**2
    video = "video" in type(part).__module__.rsplit(".", 1)[-1]
    shape = (1, frames, 3, 2 * side, 2 * side) if video else (1, 3, 2 * side, 2 * side)
    known = {
        "size": SizeDict(shortest_edge=1, longest_edge=most),
        "resample": getattr(part, "resample", None),
        "factor": _side(part),
        "temporal_factor": getattr(part, "temporal_patch_size", 1),
        "patch_size": getattr(part, "patch_size", None),
        "merge_size": getattr(part, "merge_size", None),
    }
    try:
        taken = inspect.signature(part.resize).parameters
        shown = part.resize(
            torch.empty(shape, device="meta"), **{n: v for n, v in known.items() if n in taken}
        )
    except Exception:  # it resizes by something else, and may refuse this in any way
        return 1
    times = round(most / (shown.shape[-1] * shown.shape[-2]))
    return times if 1 <= times <= MOST_TIMES else 1


def _limit_each(part: Any, most: int) -> None:
    """Give the part a class of its own that sets the limit by the frames of each video."""
    cls = type(part)

    def resize(self: Any, *args: Any, size: Any, **kwargs: Any) -> Any:
        video = next(v for v in (*args, *kwargs.values()) if hasattr(v, "shape"))
        together = getattr(self, "temporal_patch_size", 1)
        frames = int(video.shape[1])
        # An odd number of them is counted as an even one, which may be more or less.
        counted = max(1, min(frames, round(frames / together) * together))
        limit = min(size.longest_edge, most * counted)
        least = _below(size.shortest_edge, limit)
        kept = type(size)(shortest_edge=least, longest_edge=limit)
        return cls.resize(self, *args, size=kept, **kwargs)

    limited = type(cls.__name__, (cls,), {"resize": resize, "__module__": cls.__module__})
    part.__class__ = limited

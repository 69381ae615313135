"""Finds the image sizes that a checkpoint's processor produces, by running it on test frames."""

import contextlib
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from artifacts.frame_fit import FrameFit
from artifacts.schema import MediaKind
from stages.models.processors.blank_clips import Clip, black_clip
from stages.models.processors.loading import is_image_output
from stages.models.processors.prepare import channel_of, prepare
from stages.models.processors.side_inputs import Prepared
from stages.models.profile import SeenSize
from stages.models.protocols import Processor
from stages.process.exit_diagnosis import out_of_memory

COMMON = (9 / 16, 16 / 9, 3 / 4, 4 / 3, 1 / 2, 2.0)
"""Height / width of most files; frames of these aspects are fitted exactly."""
ASPECTS = tuple(
    sorted({*COMMON, *(3.0 ** (step / 5) for step in range(-5, 6))}, key=lambda a: min(a, 1 / a))
)
"""All test aspects. Between two of them, the larger of their two sizes is assumed, because the
output size may jump there, for example if the processor chooses another number of tiles. The
aspects with the fewest pixels come first: the first one that is not made smaller ends the test.
"""
LONG_EDGES = (1280, 3840)
"""Longer side of a test frame in pixels; the second, that of 4K, if the first is not reduced."""
SMALLER = (64, 224, 448, 720)
"""Side lengths in pixels of smaller squares, for the cost of smaller frames."""
ASPECT_MARGIN = 1e-6
"""Minimum relative difference of two aspects."""
NORMALIZE = "rescale_and_normalize"
"""Name of the processing step that follows resizing."""
LARGEST_STEP = 64
"""Largest step in pixels to which a processor rounds sizes. Larger steps are tiles."""
UNBOUNDED = 1 << 20
"""A long edge that no frame reaches: frames of aspects beyond the tested ones keep their size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """The sizes, tokens and bytes measured for one kind of frames."""

    fit: FrameFit
    tokens: int
    """Placeholders per frame of a large square image; 0 if unknown."""
    pixel_bytes: int
    """Bytes of encoder input for such a frame; 0 if unknown."""
    smaller: tuple[SeenSize, ...] = ()
    """The same for smaller square images, smallest first."""


Way = Callable[[Processor, Clip], Prepared]
"""A function that runs a processor on a clip."""


class Enough(Exception):
    """Raised once the processor has resized the frames, to skip the rest of its work."""


def probe(processor: Processor, kind: MediaKind, way: Way = prepare) -> Probe:
    """Find the sizes at which images are seen, or at which a video's frames are worth storing.

    A processor that keeps large frames, or changes them in another way than resizing, gives an
    empty fit: frames then keep their size.
    """
    tokens = size = 0
    smaller: tuple[SeenSize, ...] = ()
    try:
        clip = black(processor, kind, 1.0, LONG_EDGES[0])
        seen = _seen(processor, clip, way)
        tokens, size = seen.tokens, seen.pixel_bytes
        squares = [black(processor, kind, 1.0, edge) for edge in SMALLER]
        smaller = tuple(_seen(processor, square, way) for square in squares)
        wait = resized(processor, clip, wait=True, way=way)[1]
        for long_edge in LONG_EDGES:
            if sizes := _made(processor, kind, long_edge, wait, way):
                fit = FrameFit(long_edges=_steps(sizes))
                alike = _comes_out_alike(processor, kind, long_edge, fit, way)
                fit = fit if alike else FrameFit()
                return Probe(fit=fit, tokens=tokens, pixel_bytes=size, smaller=smaller)
    except Exception as error:  # a processor may fail in any way; real frames will show the error
        if out_of_memory(error):
            raise
    return Probe(fit=FrameFit(), tokens=tokens, pixel_bytes=size, smaller=smaller)


def pixels_per_video(processor: Processor) -> int:
    """Return the maximum pixels of all frames of a video together, for a processor that makes
    frames smaller the more there are; 0 for others."""
    part: Any = getattr(processor, "video_processor", None)
    # A test would need as many pixels as hours of video have.
    rule = getattr(sys.modules.get(type(part).__module__), "smart_resize", None)
    if rule is None or "num_frames" not in inspect.signature(rule).parameters:
        return 0
    return int(dict(part.size).get("longest_edge") or 0)


def _seen(processor: Processor, clip: Clip, way: Way) -> SeenSize:
    row = way(processor, clip)
    image_bytes = sum(bytes_of(v) for n, v in row.inputs.items() if is_image_output(n))
    count = len(clip.frames)
    return SeenSize(
        edge=clip.frames.shape[1],
        tokens=math.ceil(row.count.tokens / count),
        pixel_bytes=math.ceil(image_bytes / count),
    )


Made = tuple[int, tuple[int, ...]]
"""The longer side in pixels that a frame of one aspect needs so that no output is enlarged, and all
heights and widths that a processor makes of it."""


def _comes_out_alike(
    processor: Processor, kind: MediaKind, long_edge: int, fit: FrameFit, way: Way
) -> bool:
    """Return whether fitted frames give as many pixels and tokens as whole ones. Some processors
    cut tiles out of the frame as it is, and a smaller frame has fewer."""
    for aspect in (COMMON[0], 1.0):
        clip = black(processor, kind, aspect, long_edge)
        count, *size = clip.frames.shape[:3]
        fitted = np.zeros((count, *fit.size(*size), 3), np.uint8)
        small = replace(clip, frames=fitted)
        if _outcome(processor, clip, way) != _outcome(processor, small, way):
            return False
    return True


def _outcome(processor: Processor, clip: Clip, way: Way) -> Any:
    row = way(processor, clip)
    return row.count, {n: np.shape(v) for n, v in row.inputs.items() if is_image_output(n)}


def _made(
    processor: Processor, kind: MediaKind, long_edge: int, wait: bool, way: Way
) -> dict[float, Made]:
    """Return aspect → sizes of frames with this long edge; empty if the frames of any aspect are
    not made smaller."""
    made: dict[float, Made] = {}
    for aspect in ASPECTS:
        clip = black(processor, kind, aspect, long_edge)
        height, width = clip.frames.shape[1:3]
        sizes, _ = resized(processor, clip, wait, way)
        scale = max((max(h / height, w / width) for h, w in sizes), default=1.0)
        if scale >= 1:
            return {}
        edge = math.ceil(scale * long_edge - 1e-6)
        made[aspect] = edge, tuple(itertools.chain.from_iterable(sizes))
    return made


def _rounding(made: Iterable[Made]) -> int:
    """Return the step in pixels to which the processor rounds all sides; 0 if it does not round."""
    sides = {side for _, sizes in made for side in sizes}
    step = math.gcd(*sides)
    return step if len(sides) > 1 and step <= LARGEST_STEP else 0


def _steps(made: dict[float, Made]) -> tuple[tuple[float, int], ...]:
    """Return the long edges as a step function of the aspect. Between two aspects it has the larger
    value, plus the possible rounding of the shorter side."""
    points = [(min(made) * (1 - ASPECT_MARGIN), UNBOUNDED)]
    step = _rounding(made.values())
    edges = {aspect: edge for aspect, (edge, _) in made.items()}
    for low, high in itertools.pairwise(sorted(made)):
        edge = max(edges[low], edges[high])
        edge += math.ceil(step * max(high, 1 / low))
        points += [
            (low, edges[low]),
            (low * (1 + ASPECT_MARGIN), edge),
            (high * (1 - ASPECT_MARGIN), edge),
        ]
    last = max(made)
    points += [(last, edges[last]), (last * (1 + ASPECT_MARGIN), UNBOUNDED)]
    inner = zip(points, points[1:], points[2:], strict=False)
    needed = [b for a, b, c in inner if not a[1] == b[1] == c[1]]
    return (points[0], *needed, points[-1])


def bytes_of(value: Any) -> int:
    """Return the bytes of a tensor, or of all tensors in a sequence."""
    if isinstance(value, list | tuple):
        return sum(map(bytes_of, value))
    return int(getattr(value, "nbytes", 0))


def black(
    processor: Processor, kind: MediaKind, aspect: float, long_edge: int, shown: int = 2
) -> Clip:
    """Make black frames of this height / width: `shown` frames if they are passed as a video."""
    count = shown if channel_of(processor, kind) == "videos" else 1
    height = long_edge if aspect >= 1 else max(1, round(long_edge * aspect))
    width = max(1, round(long_edge / aspect)) if aspect >= 1 else long_edge
    return black_clip(kind, count, height, width)


def resized(
    processor: Processor, clip: Clip, wait: bool = False, way: Way = prepare
) -> tuple[list[tuple[int, int]], bool]:
    """Return the sizes (height, width) in pixels to which the processor resizes the clip's frames,
    and whether it resizes again after the next step.

    Unless `wait`, the run stops at that step. Frames that were already resized once do not need
    larger input."""
    videos = channel_of(processor, clip.kind) == "videos"
    part = processor.video_processor if videos else processor.image_processor
    produced: list[tuple[int, int]] = []
    resize, normalize = part.resize, getattr(part, NORMALIZE, None)
    before = [0]

    def watched(*args: Any, **kwargs: Any) -> Any:
        image = next(v for v in (*args, *kwargs.values()) if hasattr(v, "shape"))
        result = resize(*args, **kwargs)
        if _size(image) == clip.frames.shape[1:3]:
            produced.append(_size(result[0] if isinstance(result, tuple) else result))
        return result

    def stop(*args: Any, **kwargs: Any) -> Any:
        if not before[0]:
            before[0] = len(produced)
        if normalize is None or (produced and not wait):
            raise Enough
        return normalize(*args, **kwargs)

    part.__dict__.update({"resize": watched, NORMALIZE: stop})
    try:
        with contextlib.suppress(Enough):
            way(processor, clip)
    finally:
        del part.__dict__["resize"], part.__dict__[NORMALIZE]
    return produced, 0 < before[0] < len(produced)


def _size(image: Any) -> tuple[int, int]:
    """Return height and width of a tensor or array with channels first or last."""
    shape = tuple(int(length) for length in image.shape)
    last = shape[-1] in (1, 3, 4) and shape[-2] > 4
    return (shape[-3], shape[-2]) if last else (shape[-2], shape[-1])

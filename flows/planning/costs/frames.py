"""Estimates the cost of decoding frames."""

import math
from collections.abc import Sequence

from artifacts.words import counted
from flows.checkpoint.models import Model
from flows.options.commands import RunOptions
from flows.planning.estimate import StageEstimate, Term
from flows.planning.rungs import Rung, sizes
from flows.planning.seconds import WorkEstimate
from flows.planning.todo import RemainingWork
from flows.planning.workloads import Workload
from stages.frames import PACK_BYTES
from stages.process.cgroup import cores

PICTURES_HELD = 20
"""Pictures that a video decoder holds: 16 that others refer to, and those of its threads."""
YUV_BYTES = 1.5
"""Bytes of a pixel as videos have it."""
FILE_BYTES = 8 << 20
"""Bytes that reading a video takes beside its pictures: its index, its times, the container's
buffers."""
READING_BYTES = 12
"""Bytes of a pixel of a picture while it is read: Pillow's 4 twice where it is turned upright, the
3 stored; 16 where it was transparent."""


def rungs(model: Model, config: RunOptions, device: str) -> list[Rung]:
    """Return fewer and fewer files at once."""
    return [Rung(stage="frames", batch=batch) for batch in sizes(cores())]


def memory(model: Model, rung: Rung, workload: Workload, *, device: str, new: int) -> StageEstimate:
    """Add up the files that are cut at once, and what their decoders hold."""
    high, wide = workload.shown
    files = max(1, min(rung.batch, workload.chunks))
    if workload.kind == "video":
        pictures = math.ceil(PICTURES_HELD * YUV_BYTES * high * wide) + FILE_BYTES
        terms = [
            Term(
                part="activation",
                bytes=files * (workload.frame_bytes + pictures),
                why=f"{counted(files, 'file')} at once x ({counted(workload.frames, 'frame')} of "
                f"{workload.stored[1]}x{workload.stored[0]}x3, and {PICTURES_HELD} pictures of "
                f"{wide}x{high} in the decoder)",
            )
        ]
    else:
        held = PACK_BYTES + READING_BYTES * math.prod(workload.stored)
        size = f"{PACK_BYTES >> 20} MiB"
        why = f"{counted(files, 'pack')} of pictures of {size}, each with one being read"
        terms = [Term(part="activation", bytes=files * held, why=why)]
    # The device does nothing: a GPU's stage is measured by the host's memory as well.
    return StageEstimate.of(rung, terms, device="cpu", workload=workload)


def work_left(model: Model, rung: Rung, left: Sequence[RemainingWork], new: int) -> WorkEstimate:
    """Count the pixels that are decoded and the frames that are stored."""
    pixels = {each.workload.kind: each.pixels for each in left}
    return WorkEstimate(
        processes=int(any(pixels.values())),
        video_pixels=pixels.get("video", 0.0),
        picture_pixels=pixels.get("image", 0.0),
        written_bytes=sum(each.frame_bytes for each in left),
    )

"""Estimates the cost of decoding frames."""

import math

from artifacts.wording import counted
from flows.core.checkpoint.models import Model
from flows.core.options.commands import RunOptions
from flows.core.plan.ladder import Rung, sizes
from flows.core.plan.stage_estimate import Conditions, Cost, Reason, StageEstimate, Term
from flows.core.plan.workloads import Workload
from stages.frames import PACK_BYTES, READING_BYTES
from stages.process.host_memory import cores

DECODER_FRAMES = 20
"""Frames that a video decoder holds: 16 reference frames, and those of its threads."""
YUV_BYTES = 1.5
"""Bytes per pixel of a decoded video frame."""
FILE_BYTES = 8 << 20
"""Bytes of reading a video besides its frames: index, timestamps and container buffers."""


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return rungs with fewer and fewer files at once."""
    return [Rung(stage=stage, batch=batch) for batch in sizes(cores())]


def memory(model: Model, rung: Rung, workload: Workload, conditions: Conditions) -> StageEstimate:
    """Add up the chunks of the files decoded at once, and the decoders' memory."""
    height, width = workload.shown
    files = max(1, min(rung.batch, workload.chunks))
    if workload.kind == "video":
        decoder_bytes = math.ceil(DECODER_FRAMES * YUV_BYTES * height * width) + FILE_BYTES
        term = Term.of(
            "activation",
            files * (workload.frame_bytes + decoder_bytes),
            Reason.VIDEOS,
            files=counted(files, "file"),
            frames=counted(workload.frames, "frame"),
            stored=f"{workload.stored[1]}x{workload.stored[0]}",
            decoded=DECODER_FRAMES,
            shown=f"{width}x{height}",
        )
    else:
        held = PACK_BYTES + READING_BYTES * math.prod(workload.stored)
        numbers = {"packs": counted(files, "pack"), "each": PACK_BYTES >> 20}
        term = Term.of("activation", files * held, Reason.IMAGES, **numbers)
    # This stage does not use the GPU, so only host memory counts.
    return StageEstimate(rung=rung, terms=(term,), device="cpu", workload=workload)


COST = Cost(rungs=rungs, memory=memory)

"""Estimates the cost of reading the sound of files."""

from collections.abc import Sequence

from artifacts.plurals import counted
from flows.checkpoint.models import Model
from flows.options.commands import RunOptions
from flows.planning.estimate import StageEstimate, Term
from flows.planning.ladder import Rung, sizes
from flows.planning.machine import WorkEstimate
from flows.planning.workloads import RemainingWork, Workload
from stages.process.memory import cores

FILE_BYTES = 24 << 20
"""Bytes of reading the sound of a file: container buffers, decoder, resampler and chunks that are
not stored yet."""


def rungs(model: Model, config: RunOptions, device: str) -> list[Rung]:
    """Return rungs with fewer and fewer files at once."""
    return [Rung(stage="sound", batch=batch) for batch in sizes(cores())]


def memory(model: Model, rung: Rung, workload: Workload, *, device: str, new: int) -> StageEstimate:
    """Add up the files that are read at once."""
    files = max(1, min(rung.batch, workload.chunks))
    why = f"sound of {counted(files, 'file')} at once"
    terms = [Term(part="activation", bytes=files * FILE_BYTES, why=why)]
    return StageEstimate.from_terms(rung, terms, device="cpu", workload=workload)


def work_left(model: Model, rung: Rung, left: Sequence[RemainingWork], new: int) -> WorkEstimate:
    """Count one process. Decoding sound takes a fraction of the time of decoding frames."""
    return WorkEstimate(processes=int(any(each.left.get(rung.stage) for each in left)))

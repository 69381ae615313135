"""Estimates the cost of tagging frames by the graph of a user."""

from flows.core.checkpoint.models import Model
from flows.core.options.commands import RunOptions
from flows.core.plan.ladder import Rung, sizes
from flows.core.plan.stage_estimate import Conditions, Cost, Purpose, Reason, StageEstimate, Term
from flows.core.plan.terms import LIBRARIES_BYTES
from flows.core.plan.workloads import Workload
from stages.models.encoding import FIXED_ROWS

LOADED = 2
"""ONNX Runtime holds a graph's weights twice while it loads them."""
ACTIVATIONS = 64
"""Assumed bytes of activations for each byte of a graph's input; a ViT-B at 448 pixels has 40."""
READ_BATCHES = 3
"""Batches of squares in memory: two are read while one passes the graph."""


def pass_rows(model: Model, rung: Rung, device: str) -> int:
    """Return the pictures per pass: one on a CPU, where more are no faster."""
    assert model.tagger is not None
    return model.tagger.rows(1 if device == "cpu" else min(FIXED_ROWS, rung.batch))


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return smaller and smaller batches."""
    precision = model.best("vision").precision
    return [Rung(stage=stage, batch=n, precision=precision) for n in sizes(config.batch_size)]


def memory(model: Model, rung: Rung, workload: Workload, conditions: Conditions) -> StageEstimate:
    """Add up the weights, the pictures of a pass, and the frames of a chunk."""
    rows, pixels = pass_rows(model, rung, conditions.device), model.profile.image_pixel_bytes
    weights, on_gpu = model.best("vision").weight_bytes, conditions.device != "cpu"
    numbers = {"rows": rows, "each": pixels, "assumed": ACTIVATIONS}
    terms = [
        Term.of("weight", LOADED * weights, Reason.GRAPH_FILES),
        Term.of("activation", ACTIVATIONS * rows * pixels, Reason.PASS_OF_GRAPH, **numbers),
    ]
    if on_gpu:
        terms.append(Term.of("context", conditions.context_bytes, Reason.CONTEXT))
    squares = READ_BATCHES * rung.batch * workload.frames * pixels // 4
    held = workload.frame_bytes + squares + LIBRARIES_BYTES
    place: Purpose = "host" if on_gpu else "workspace"
    terms.append(Term.of(place, held, Reason.SQUARES, batches=READ_BATCHES))
    return StageEstimate(rung=rung, terms=tuple(terms), device=conditions.device, workload=workload)


COST = Cost(rungs=rungs, memory=memory)

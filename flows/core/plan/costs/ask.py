"""Estimates the cost of captions by a server."""

from flows.core.checkpoint.models import Model
from flows.core.options.commands import RunOptions
from flows.core.options.model import REQUESTS
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Conditions, Cost, Reason, StageEstimate, Term
from flows.core.plan.workloads import Workload

WORKSPACE = 32 << 20
"""Bytes besides frames. 1,000 small pictures, 32 at once, took 15 MiB (benchmarks/endpoint.py)."""


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return the only rung: a number of concurrent requests."""
    return [Rung(stage=stage, batch=config.groups.engine.slots or REQUESTS)]


def memory(model: Model, rung: Rung, workload: Workload, conditions: Conditions) -> StageEstimate:
    """Add up the frames of a chunk as stored and resized, and those of the requests."""
    total = (2 + rung.batch // 4) * workload.frame_bytes
    terms = (
        Term.of("activation", total, Reason.REQUESTS, requests=rung.batch),
        Term.of("workspace", WORKSPACE, Reason.CONNECTIONS),
    )
    return StageEstimate(rung=rung, terms=terms, device="cpu", workload=workload)


COST = Cost(rungs=rungs, memory=memory)

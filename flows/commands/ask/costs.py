"""Estimates the cost of answering questions from features."""

from dataclasses import replace
from enum import StrEnum

from flows.core.checkpoint.models import Model
from flows.core.plan.costs import ask, decode
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Conditions, Cost, StageEstimate, Term
from flows.core.plan.workloads import Workload
from stages.answer import ROWS

LABEL_TOKENS = 16
"""Assumed tokens of the longest label."""
COPIES = 1 + ROWS
"""KV caches besides that of the prompt: of the prefix, and of the labels of several tokens that are
read at once."""


class AnswerReason(StrEnum):
    """Why a term of this stage is needed."""

    COPIES = "{copies} copies of the KV cache, of the prefix and of labels that are read"


def memory(model: Model, rung: Rung, workload: Workload, conditions: Conditions) -> StageEstimate:
    """Add up weights, and the prefill of one prompt with the copies of its KV cache."""
    alone = replace(workload, chunks=1)
    estimate = decode.memory(model, rung, alone, replace(conditions, new_tokens=LABEL_TOKENS))
    size = COPIES * sum(term.bytes for term in estimate.terms if term.part == "kv")
    whole = estimate.plus(Term.of("kv", size, AnswerReason.COPIES, copies=COPIES))
    return replace(whole, workload=workload, flops=estimate.flops * workload.chunks)


COSTS = {"answer": Cost(rungs=decode.rungs, memory=memory), "ask_probes": ask.COST}
"""Stage → its cost."""

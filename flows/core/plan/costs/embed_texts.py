"""Estimates the cost of running texts through a text half."""

from dataclasses import replace

from artifacts.wording import counted
from flows.core.checkpoint.models import Model
from flows.core.options.commands import RunOptions
from flows.core.plan.half import decoder_batch, free_settings, settings_as_run
from flows.core.plan.ladder import Rung, sizes
from flows.core.plan.stage_estimate import Conditions, Cost, Reason, StageEstimate, Term
from flows.core.plan.terms import overhead_terms, products, weights
from flows.core.plan.workloads import Workload
from stages.embed_texts import TEXTS_PER_BATCH

ASSUMED_TOKENS = 77
"""Assumed tokens per text, if the profile has none."""


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return smaller batches, in each precision that the half supports."""
    precisions = [s.precision for s in free_settings(model, config, "language")]
    single = [Rung(stage=stage, batch=1, precision=precision) for precision in precisions]
    return [replace(rung, batch=size) for rung in single for size in sizes(TEXTS_PER_BATCH)]


def memory(model: Model, rung: Rung, workload: Workload, conditions: Conditions) -> StageEstimate:
    """Add up weights and activations for texts of the maximum length."""
    half, rows, device = model.profile.language, rung.batch, conditions.device
    settings = settings_as_run(model.best("language"), half, rung)
    terms = list(weights(half, settings, rung, device))
    tokens = max((cost.units for cost in half.batch_costs), default=ASSUMED_TOKENS)
    costs = decoder_batch(model.profile, settings, rows, tokens, kind="image")
    numbers = {"texts": counted(rows, "text"), "tokens": tokens, "source": costs.source}
    terms.append(Term.of("activation", costs.peak_bytes, Reason.TEXTS, **numbers))
    terms += products(half, settings, rung, rows * tokens, device)
    terms += overhead_terms(terms, conditions, Term.of("workspace", 0, Reason.NEXT_TEXTS))
    return StageEstimate(
        rung=rung,
        terms=tuple(terms),
        device=device,
        workload=workload,
        flops=costs.flops,
        by_dimensions=not costs.known,
    )


COST = Cost(rungs=rungs, memory=memory)

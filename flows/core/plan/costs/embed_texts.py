"""Estimates the cost of running texts through a text half."""

import math
from dataclasses import replace

from artifacts.wording import counted
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import BYTES
from flows.core.options.commands import RunOptions
from flows.core.plan.costs.part import figures_source, free_settings, settings_as_run
from flows.core.plan.estimate import decoder_by_dimensions, expected
from flows.core.plan.ladder import Rung, sizes
from flows.core.plan.stage_estimate import Conditions, StageEstimate, Term
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
    item_bytes, known = BYTES.get(settings.dtype, 4), half.batch_costs
    tokens = max((cost.units for cost in known), default=ASSUMED_TOKENS)
    costs = (
        expected(known, "image", rows, tokens, item_bytes=item_bytes)
        if known
        else decoder_by_dimensions(model.profile, item_bytes, rows, tokens)
    )
    why = f"{counted(rows, 'text')} x {tokens:,} tokens: {figures_source(costs)}"
    terms.append(Term(part="activation", bytes=math.ceil(costs.peak_bytes), why=why))
    terms += products(half, settings, rung, rows * tokens, device)
    ahead = Term(part="workspace", bytes=0, why="texts, which take almost nothing")
    terms += overhead_terms(terms, device, ahead)
    return StageEstimate(
        rung=rung,
        terms=tuple(terms),
        device=device,
        workload=workload,
        flops=costs.flops,
        by_dimensions=not costs.known,
    )

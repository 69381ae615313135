"""Estimates the cost of training an adapter on stored features. `plan --train` uses the same
arithmetic.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from artifacts.errors import UsageError
from artifacts.packages import is_installed
from flows.commands.plan.training.architecture import Architecture, pass_bytes, read_architecture
from flows.commands.plan.training.estimate import LOGITS, adapted_layer_bytes, lora_parameters
from flows.commands.plan.training.terms import ADAPTER, OPTIMIZERS
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import BYTES, QUANTIZER, PartSettings
from flows.core.options.commands import RunOptions
from flows.core.plan.costs import decode
from flows.core.plan.costs.cost import Cost
from flows.core.plan.costs.part import free_settings, settings_as_run, with_packed
from flows.core.plan.ladder import Rung, sizes
from flows.core.plan.stage_estimate import Conditions, StageEstimate, Term
from flows.core.plan.terms import ADDED_BYTES, adapter_terms, overhead_terms, weights
from flows.core.plan.workloads import Workload
from stages.models.hub.checkpoint import Checkpoint
from stages.tune import ADAMW, ADAMW8, PAGED_ADAMW8

FOUR_BIT = "nf4"
"""4-bit precision that supports gradients."""
EIGHT_BIT = OPTIMIZERS["8bit"].optimizer
MOMENTS = {ADAMW: ADAPTER.optimizer, ADAMW8: EIGHT_BIT, PAGED_ADAMW8: EIGHT_BIT}
"""Optimizer → bytes kept per trained number."""
BEST_STATE_BYTES = 4
"""Bytes per trained number of the best state so far, kept on the host."""
KEPT_VALUES = 34
"""Approximate values per token that a layer keeps for the backward pass, in multiples of the hidden
size, if its dimensions are unknown (Korthikanti et al. 2022, equation 1)."""


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return the rungs: fewer examples at once, then gradient checkpointing, then 8-bit moments
    where bitsandbytes is installed, and, if allowed, 4-bit weights."""
    options = config.groups.training
    candidates: list[Rung] = []
    for settings in free_settings(model, config, "language"):
        if settings.kv or (candidates and settings.precision != FOUR_BIT):
            continue
        whole = Rung(
            stage=stage,
            batch=1,
            precision=settings.precision,
            rank=0 if options.scored_only else options.lora_rank,
            caption=options.caption_tokens,
            recompute=options.recompute,
            optimizer=options.optimizer,
        )
        candidates += [replace(whole, batch=size) for size in sizes(config.batch_size)]
        if not options.scored_only:
            recomputed = replace(whole, recompute=True)
            candidates.append(recomputed)
            if is_installed(QUANTIZER):
                candidates.append(replace(recomputed, optimizer=ADAMW8))
    return with_packed(model.profile.language, list(dict.fromkeys(candidates)))


def memory(model: Model, rung: Rung, workload: Workload, conditions: Conditions) -> StageEstimate:
    """Add up frozen weights, trained parameters, and the larger memory of a training step or of
    scoring."""
    device = conditions.device
    scored = decode.memory(model, rung, replace(workload, chunks=rung.batch), conditions)
    if not rung.rank:
        return scored
    half, settings = model.profile.language, model.best("language")
    settings = settings_as_run(settings, half, rung)
    terms = list(weights(half, settings, rung, device))
    step = list(_step_terms(model, settings, rung, workload))
    scoring = [term for term in scored.terms if term.part in ("activation", "kv")]
    terms += max(step, scoring, key=lambda some: sum(term.bytes for term in some))
    terms += [*_states(model, rung), *adapter_terms(settings, rung, rung.batch * workload.tokens)]
    features = rung.batch * workload.feature_bytes
    read = Term(part="workspace", bytes=features, why="the features of a step's examples")
    terms += overhead_terms(terms, device, read)
    return StageEstimate(rung=rung, terms=tuple(terms), device=device, workload=workload)


@lru_cache(maxsize=4)
def _architecture(checkpoint: Checkpoint) -> Architecture | None:
    """Return the dimensions of a model; None if its files do not contain them."""
    try:
        architecture = read_architecture(checkpoint)
    except UsageError:
        return None
    return architecture if architecture.text is not None else None


def _states(model: Model, rung: Rung) -> Iterator[Term]:
    """Yield trained parameters, gradients and moments."""
    architecture, half = _architecture(model.checkpoint), model.profile.language
    if architecture is None or architecture.text is None:
        trained = rung.rank * (half.linear_rows + half.linear_modules * model.profile.feature_width)
    else:
        trained = lora_parameters(architecture.text, rung.rank)
    trained_bytes = ADAPTER.weight + ADAPTER.gradient + MOMENTS[rung.optimizer]
    count = f"{trained / 1e6:,.2f} M trained numbers"
    why = f"{count} x {trained_bytes:g} bytes, with gradients and moments"
    yield Term(part="weight", bytes=math.ceil(trained * trained_bytes), why=why)
    why = f"{count} x {BEST_STATE_BYTES} bytes, the best state so far"
    yield Term(part="workspace", bytes=trained * BEST_STATE_BYTES, why=why)


def _step_terms(
    model: Model, settings: PartSettings, rung: Rung, workload: Workload
) -> Iterator[Term]:
    """Yield the memory of one step: activations kept for the backward pass, and the larger of the
    logits and one layer."""
    architecture, number_bytes = _architecture(model.checkpoint), BYTES.get(settings.dtype, 4)
    tokens = workload.tokens + rung.caption
    rows, size_text = rung.batch * tokens, f"{rung.batch} x {tokens:,} tokens"
    half, width = model.profile.language, model.profile.feature_width
    layers = max(1, half.layers)
    logits = vocabulary = 0
    if architecture is None or architecture.text is None:
        kept = KEPT_VALUES * width * number_bytes
        inside = kept * rows
    else:
        text, vocabulary = architecture.text, architecture.vocabulary
        layers = text.layers
        fused = settings.attention != "eager"
        kept = adapted_layer_bytes(text, tokens, rung.rank, number_bytes, fused=fused)
        widest = max(rows_of for rows_of, _ in text.matrices)
        added = rows * widest * (number_bytes + ADDED_BYTES)
        inside = max(added, pass_bytes(text, rung.batch, tokens, number_bytes, fused=fused))
        logits = (sum(LOGITS) + number_bytes) * vocabulary * rung.batch * (rung.caption + 1)
    if rung.recompute:
        held, inside = number_bytes * width * layers * rows, inside + kept * rows
        why = f"{size_text} x {layers} layers x {number_bytes * width:,} bytes, their inputs"
    else:
        held = kept * layers * rows
        why = f"{size_text} x {layers} layers x {kept:,} bytes, for the backward pass"
    yield Term(part="activation", bytes=held, why=why)
    what = "one layer, with its gradients"
    if logits > inside:
        what = f"logits of {rung.caption + 1:,} tokens x {vocabulary:,} words, with gradients"
    yield Term(part="activation", bytes=max(logits, inside), why=what)


COSTS = {"tune": Cost(rungs=rungs, memory=memory)}

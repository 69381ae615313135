"""Estimates the cost of training an adapter on stored features. `plan --train` uses the same
arithmetic.
"""

from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache

from artifacts.errors import UsageError
from artifacts.packages import is_installed
from flows.commands.plan.training.architecture import Transformer, pass_bytes, read_architecture
from flows.commands.plan.training.estimate import LOGITS, adapted_layer_bytes, lora_parameters
from flows.commands.plan.training.terms import ADAPTER, OPTIMIZERS
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import BYTES, QUANTIZER, PartSettings
from flows.core.options.commands import RunOptions
from flows.core.plan.costs import decode
from flows.core.plan.half import free_settings, settings_as_run, with_packed
from flows.core.plan.ladder import Rung, sizes
from flows.core.plan.stage_estimate import Conditions, Cost, StageEstimate, Term
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


class TuneReason(StrEnum):
    """What a training takes memory for."""

    TRAINED = "{trained} x {each:g} bytes, with gradients and moments"
    BEST_STATE = "{trained} x {each} bytes, the best state so far"
    INPUTS = "{examples} tokens x {layers} layers x {each:,} bytes, their inputs"
    KEPT = "{examples} tokens x {layers} layers x {each:,} bytes, for the backward pass"
    LAYER = "one layer, with its gradients"
    LOGITS = "logits of {tokens:,} tokens x {vocabulary:,} words, with gradients"
    FEATURES = "the features of a step's examples"


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return the rungs: fewer examples at once, then gradient checkpointing, then 8-bit moments
    where bitsandbytes is installed, and, if allowed, 4-bit weights."""
    options = config.groups.training
    candidates: list[Rung] = []
    for settings in free_settings(model, config, "language"):
        if settings.kv or (candidates and settings.precision != FOUR_BIT):
            continue
        rung = Rung(
            stage=stage,
            batch=1,
            precision=settings.precision,
            rank=0 if options.scored_only else options.lora_rank,
            caption=options.caption_tokens,
            recompute=options.recompute,
            optimizer=options.optimizer,
        )
        candidates += [replace(rung, batch=size) for size in sizes(config.batch_size)]
        if not options.scored_only:
            recomputed = replace(rung, recompute=True)
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
    terms += overhead_terms(terms, conditions, Term.of("workspace", features, TuneReason.FEATURES))
    return StageEstimate(rung=rung, terms=tuple(terms), device=device, workload=workload)


@lru_cache(maxsize=4)
def _text_and_words(checkpoint: Checkpoint) -> tuple[Transformer | None, int]:
    """Return the dimensions of a language half, None if its files do not contain them, and its
    number of words."""
    try:
        architecture = read_architecture(checkpoint)
    except UsageError:
        return None, 0
    return architecture.text, architecture.vocabulary


def _states(model: Model, rung: Rung) -> Iterator[Term]:
    """Yield trained parameters, gradients and moments."""
    (text, _), half = _text_and_words(model.checkpoint), model.profile.language
    if text is None:
        trained = rung.rank * (half.linear_rows + half.linear_modules * model.profile.feature_width)
    else:
        trained = lora_parameters(text, rung.rank)
    trained_bytes = ADAPTER.weight + ADAPTER.gradient + MOMENTS[rung.optimizer]
    count = f"{trained / 1e6:,.2f} M trained numbers"
    yield Term.of(
        "weight", trained * trained_bytes, TuneReason.TRAINED, trained=count, each=trained_bytes
    )
    size = trained * BEST_STATE_BYTES
    yield Term.of("workspace", size, TuneReason.BEST_STATE, trained=count, each=BEST_STATE_BYTES)


def _step_terms(
    model: Model, settings: PartSettings, rung: Rung, workload: Workload
) -> Iterator[Term]:
    """Yield the memory of one step: activations kept for the backward pass, and the larger of the
    logits and one layer."""
    text, vocabulary = _text_and_words(model.checkpoint)
    number_bytes = BYTES.get(settings.dtype, 4)
    tokens = workload.tokens + rung.caption
    rows, examples = rung.batch * tokens, f"{rung.batch} x {tokens:,}"
    half, width = model.profile.language, model.profile.feature_width
    layers = max(1, half.layers)
    logits = 0
    if text is None:
        kept = KEPT_VALUES * width * number_bytes
        inside = kept * rows
    else:
        layers, fused = text.layers, settings.attention != "eager"
        kept = adapted_layer_bytes(text, tokens, rung.rank, number_bytes, fused=fused)
        widest = max(rows_of for rows_of, _ in text.matrices)
        added = rows * widest * (number_bytes + ADDED_BYTES)
        inside = max(added, pass_bytes(text, rung.batch, tokens, number_bytes, fused=fused))
        logits = (sum(LOGITS) + number_bytes) * vocabulary * rung.batch * (rung.caption + 1)
    if rung.recompute:
        inside += kept * rows
        kept, reason = number_bytes * width, TuneReason.INPUTS
    else:
        reason = TuneReason.KEPT
    numbers = {"examples": examples, "layers": layers, "each": kept}
    yield Term.of("activation", kept * layers * rows, reason, **numbers)
    if logits > inside:
        words = {"tokens": rung.caption + 1, "vocabulary": vocabulary}
        yield Term.of("activation", logits, TuneReason.LOGITS, **words)
    else:
        yield Term.of("activation", inside, TuneReason.LAYER)


COSTS = {"tune": Cost(rungs=rungs, memory=memory)}

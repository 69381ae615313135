"""Estimates the cost of captioning from features."""

import math
from collections.abc import Iterator
from pkgutil import resolve_name

from artifacts.wording import counted
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import BYTES, PartSettings
from flows.core.plan.costs.part import figures_source, settings_as_run
from flows.core.plan.estimate import Expected, decoder_by_dimensions, expected
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Conditions, Purpose, StageEstimate, Term
from flows.core.plan.terms import (
    adapter_terms,
    attention_terms,
    cache,
    overhead_terms,
    prefetch_of,
    products,
    weights,
)
from flows.core.plan.workloads import Workload
from stages.decode.engines.slot_load import SlotLoad, score_bytes
from stages.models.prefetch import PREFETCH_BATCHES

WAITING_BATCHES = 2
"""Batches that are claimed but not started, besides prefetched ones."""


def slot_terms(load: SlotLoad) -> Iterator[Term]:
    """Yield the memory of an engine's slots without the weights."""
    for part, size, why in resolve_name(load.engine.costs)(load):
        yield Term(part=part, bytes=size, why=why)


def prefetched_term(workload: Workload, slots: int) -> Term:
    """Return the features of running and waiting sequences, which are kept to restart sequences
    after an out-of-memory error."""
    rows = min(workload.chunks, slots * (1 + WAITING_BATCHES + PREFETCH_BATCHES))
    why = f"features of {counted(rows, 'row')}, running and waiting"
    return Term(part="workspace", bytes=rows * workload.feature_bytes, why=why)


GRAMMAR_BYTES = 1800
"""Peak bytes per vocabulary token of llguidance while it reads a tokenizer; it keeps most of them.
Measured: 258 MiB for 151,000 tokens of 9 bytes."""
DEFAULT_VOCABULARY = 150_000
"""Assumed vocabulary size of a model with an unknown one."""


def memory(model: Model, rung: Rung, workload: Workload, conditions: Conditions) -> StageEstimate:
    """Add up weights, KV cache, prefill activations and, in slots, token selection."""
    device, new = conditions.device, conditions.new_tokens
    half, rows = model.profile.language, workload.rows(rung.batch)
    settings = settings_as_run(model.best("language"), half, rung)
    terms = list(weights(half, settings, rung, device))
    together = 1 if rung.in_slots else rows
    costs = _decoder_costs(
        model, settings, workload, together, 0 if rung.in_slots else new, rung.prefill
    )
    if rung.in_slots and half.row_memory is not None:
        load = SlotLoad(
            engine=settings.choice[0],
            memory=half.row_memory,
            number_bytes=BYTES.get(settings.dtype, 4),
            slots=rows,
            tokens=workload.tokens,
            new_tokens=new,
            prompt_bytes=math.ceil(costs.peak_bytes),
            device=device,
            score_bytes=score_bytes(conditions.selection),
            direct=settings.attention == "sdpa",
            gguf=settings.gguf.shape if settings.gguf else None,
        )
        terms += slot_terms(load)
        prefetch = prefetched_term(workload, rows)
    else:
        terms += _batch_terms(model, rung, workload, rows, new, costs)
        prefetch = prefetch_of(workload, rows, rows * workload.feature_bytes, "features")
    terms += products(half, settings, rung, together * workload.tokens, device)
    terms += adapter_terms(settings, rung, together * workload.tokens)
    terms += attention_terms(half, settings, workload, together, workload.tokens, device)
    terms += overhead_terms(terms, device, prefetch)
    flops = (costs.flops + new * costs.step_flops) * workload.chunks / together
    return StageEstimate(
        rung=rung,
        terms=tuple(terms),
        device=device,
        workload=workload,
        flops=flops,
        by_dimensions=not costs.known,
    )


def memory_of_captions(
    model: Model, rung: Rung, workload: Workload, conditions: Conditions
) -> StageEstimate:
    """Return that memory and, with a schema, that of its grammar."""
    decoding = memory(model, rung, workload, conditions)
    return decoding.plus(grammar_term(model, conditions.device)) if conditions.schema else decoding


def grammar_term(model: Model, device: str) -> Term:
    """Return the memory of schema-constrained decoding: the grammar's copy of the vocabulary."""
    memory = model.profile.language.row_memory
    words = memory.words if memory else DEFAULT_VOCABULARY
    part: Purpose = "host" if device.startswith("cuda") else "workspace"
    why = f"grammar of the schema: {words:,} tokens x {GRAMMAR_BYTES:,} bytes"
    return Term(part=part, bytes=words * GRAMMAR_BYTES, why=why)


def _batch_terms(
    model: Model, rung: Rung, workload: Workload, rows: int, new: int, costs: Expected
) -> Iterator[Term]:
    """Yield the KV cache of a batch, and its prefill activations."""
    half, whole = model.profile.language, math.ceil(costs.kept_bytes)
    why = f"{counted(rows, 'row')} x ({workload.tokens:,} + {new} tokens) x "
    why += f"{whole / rows / (workload.tokens + new):,.0f} bytes"
    yield from cache(rung, whole, half, why)
    computing = max(0, math.ceil(costs.peak_bytes) - whole)
    why = f"{counted(rows, 'row')} x {workload.tokens:,} tokens: {figures_source(costs)}"
    why += ", without the cache"
    if rung.prefill:
        why += f", {rung.prefill} at once through an MLP"
    yield Term(part="activation", bytes=computing, why=why)


def _decoder_costs(
    model: Model, settings: PartSettings, workload: Workload, rows: int, new: int, mlp_chunk: int
) -> Expected:
    batch_costs, item_bytes = model.profile.language.batch_costs, BYTES.get(settings.dtype, 4)
    if not batch_costs:
        return decoder_by_dimensions(
            model.profile, item_bytes, rows, workload.tokens, new=new, mlp_chunk=mlp_chunk
        )
    return expected(
        batch_costs,
        workload.kind,
        rows,
        workload.tokens,
        item_bytes=item_bytes,
        new=new,
        mlp_chunk=mlp_chunk,
    )

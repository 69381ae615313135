"""The decode stage: rungs from fast to small (batches, slots and placements), and the memory of
captioning from features."""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pkgutil import resolve_name

from artifacts.wording import counted
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import BYTES, PartSettings
from flows.core.options.commands import RunOptions
from flows.core.plan.half import (
    BatchEstimate,
    decoder_batch,
    free_settings,
    settings_as_run,
    with_packed,
)
from flows.core.plan.ladder import MLP_CHUNKS, Rung, sizes
from flows.core.plan.stage_estimate import Conditions, Cost, Reason, StageEstimate, Term
from flows.core.plan.terms import (
    adapter_terms,
    attention_terms,
    cache,
    on_host,
    overhead_terms,
    prefetch_of,
    products,
    weights,
)
from flows.core.plan.workloads import Workload
from stages.decode.engines.slot_load import SlotLoad, score_bytes
from stages.models.gguf import ROWS
from stages.models.prefetch import PREFETCH_BATCHES
from stages.models.profile import PartProfile

WAITING_BATCHES = 2
"""Batches that are claimed but not started, besides prefetched ones."""
GRAMMAR_BYTES = 1800
"""Peak bytes per vocabulary token of llguidance while it reads a tokenizer; it keeps most of them.
Measured: 258 MiB for 151,000 tokens of 9 bytes."""
DEFAULT_VOCABULARY = 150_000
"""Assumed vocabulary size of a model with an unknown one."""


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return the rungs: fewer slots or smaller batches, chunked prefill, KV cache in host memory,
    quantized weights, layers loaded one by one. Where no engine generates text, one prompt at a
    time is read, and its cache stays as it is."""
    half = model.profile.language
    allowed = free_settings(model, config, "language")
    best = model.best("language")
    has_states = half.row_memory is not None and half.row_memory.has_states
    engine = next(iter(best.choice), None)
    gpu_slots = engine.gpu_slots if engine and device.startswith("cuda") and not has_states else 0
    batch = config.batch_size if engine else 1
    slots = config.groups.engine.slots or max(batch, gpu_slots)
    candidates = decode_rungs(
        batch,
        [(s.precision, s.kv) for s in allowed if engine or not s.kv],
        kv_offload=device.startswith("cuda") and any(choice.kv for choice in best.choice),
        # PEFT replaces the layers that would be loaded one by one.
        offload=config.may_fall_back("language")
        and not (half.stored_as or best.gguf)
        and not config.groups.adapter.adapter,
        in_slots=[s.precision for s in allowed if supports_slots(half, s)],
        slots=min(ROWS, batch) if best.gguf else slots,
        chunked=not best.gguf,
    )
    candidates = [replace(rung, stage=stage) for rung in candidates]
    return candidates if best.gguf else with_packed(half, candidates)


def supports_slots(half: PartProfile, settings: PartSettings) -> bool:
    """Return whether a half may run in slots by its profile. The engine check decides later."""
    engine = settings.choice[0] if settings.choice else None
    if engine is None or not engine.slots or settings.kv or half.row_memory is None:
        return False
    if settings.precision in engine.refused_precisions:
        return False
    if engine.cache_layers is None:
        return True
    layers = half.row_memory.kept
    windows = {layer.window for layer in layers if layer.window}
    is_supported = all(layer.kind in engine.cache_layers for layer in layers)
    return is_supported and len(windows) < 2 and any(layer.token_bytes for layer in layers)


def decode_rungs(
    batch: int,
    variants: Sequence[tuple[str, str]],
    *,
    kv_offload: bool,
    offload: bool,
    in_slots: Container[str] = (),
    slots: int = 0,
    chunked: bool = True,
) -> list[Rung]:
    """Return the rungs of each variant: smaller batches, chunked prefill, and KV cache offload.

    `variants`: pairs of precision and KV cache, which is `quantized` or empty. `kv_offload`:
    whether the KV cache may be in host memory. `offload`: whether weights may be loaded layer by
    layer. `in_slots`: precisions with slots instead of batches. `slots`: maximum number of slots;
    0: the batch size. `chunked`: whether a prompt may be prefilled in chunks.
    """
    candidates: list[Rung] = []
    smallest = Rung(stage="decode", batch=1, prefill=MLP_CHUNKS[-1])
    in_slots_sizes, batch_sizes = sizes(slots or batch), sizes(batch)
    for precision, kv in variants:
        in_a_slot = not kv and precision in in_slots
        single = replace(smallest, precision=precision, kv=kv, in_slots=in_a_slot)
        if kv:  # a quantized cache is the last resort of its precision
            candidates.append(single)
            continue
        rows = in_slots_sizes if single.in_slots else batch_sizes
        candidates += [replace(single, batch=size, prefill=0) for size in rows]
        candidates += [replace(single, prefill=tokens) for tokens in MLP_CHUNKS if chunked]
        if kv_offload:
            candidates.append(replace(single, kv="offloaded", in_slots=False))
    if not offload or not variants:
        return candidates
    # Layers are loaded one by one, so a batch costs hardly more than one item.
    best = variants[0][0]
    last = replace(smallest, precision=best, offload=True, in_slots=best in in_slots)
    rows = in_slots_sizes if last.in_slots else batch_sizes
    return candidates + [replace(last, batch=size) for size in rows]


def memory(model: Model, rung: Rung, workload: Workload, conditions: Conditions) -> StageEstimate:
    """Add up weights, KV cache, prefill activations and, in slots, token selection."""
    device, new = conditions.device, conditions.new_tokens
    half, rows = model.profile.language, workload.rows(rung.batch)
    settings = settings_as_run(model.best("language"), half, rung)
    terms = list(weights(half, settings, rung, device))
    together = 1 if rung.in_slots else rows
    costs = decoder_batch(
        model.profile,
        settings,
        together,
        workload.tokens,
        kind=workload.kind,
        new=0 if rung.in_slots else new,
        mlp_chunk=rung.prefill,
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
        of_slots = resolve_name(load.engine.costs)(load)
        terms += (Term(part=part, bytes=size, why=why) for part, size, why in of_slots)
        prefetch = prefetched_term(workload, rows)
    else:
        terms += _batch_terms(model, rung, workload, rows, new, costs)
        prefetch = prefetch_of(workload, rows, rows * workload.feature_bytes, "features")
    terms += products(half, settings, rung, together * workload.tokens, device)
    terms += adapter_terms(settings, rung, together * workload.tokens)
    terms += attention_terms(half, settings, workload, together, workload.tokens, device)
    terms += overhead_terms(terms, conditions, prefetch)
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
    """Return that of `memory` and, with a schema, of its grammar: a copy of the vocabulary."""
    decoding = memory(model, rung, workload, conditions)
    if not conditions.schema:
        return decoding
    row_memory = model.profile.language.row_memory
    words = row_memory.words if row_memory else DEFAULT_VOCABULARY
    part, size = on_host(conditions.device), words * GRAMMAR_BYTES
    return decoding.plus(Term.of(part, size, Reason.GRAMMAR, tokens=words, each=GRAMMAR_BYTES))


def prefetched_term(workload: Workload, slots: int) -> Term:
    """Return the term of the features of running and waiting sequences, with which these restart
    after an out-of-memory error."""
    rows = min(workload.chunks, slots * (1 + WAITING_BATCHES + PREFETCH_BATCHES))
    size = rows * workload.feature_bytes
    return Term.of("workspace", size, Reason.WAITING_ROWS, rows=counted(rows, "row"))


def _batch_terms(
    model: Model, rung: Rung, workload: Workload, rows: int, new: int, costs: BatchEstimate
) -> Iterator[Term]:
    """Yield the KV cache of a batch, and its prefill activations."""
    half, whole = model.profile.language, math.ceil(costs.kept_bytes)
    numbers = {"rows": counted(rows, "row"), "tokens": workload.tokens}
    size = whole / rows / (workload.tokens + new)
    yield from cache(rung, whole, half, Reason.CACHED_ROWS.format(**numbers, new=new, each=size))
    numbers |= {"source": costs.source, "chunk": rung.prefill}
    reason = Reason.PREFILL_IN_CHUNKS if rung.prefill else Reason.PREFILL
    yield Term.of("activation", max(0, math.ceil(costs.peak_bytes) - whole), reason, **numbers)


COST = Cost(rungs=rungs, memory=memory_of_captions)

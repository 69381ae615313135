"""Estimates the cost of captioning from features."""

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pkgutil import resolve_name

from artifacts.wording import counted
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import BYTES, PartSettings
from flows.core.options.commands import RunOptions
from flows.core.options.model import AdapterOptions
from flows.core.options.text import EngineOptions
from flows.core.plan.costs.part import figures_source, free_settings, settings_as_run, with_packed
from flows.core.plan.estimate import (
    Expected,
    Purpose,
    StageEstimate,
    Term,
    decoder_by_dimensions,
    expected,
)
from flows.core.plan.ladder import MLP_CHUNKS, Rung, sizes
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
from stages.models.gguf import ROWS
from stages.models.prefetch import PREFETCH_BATCHES
from stages.models.profile import PartProfile

WAITING_BATCHES = 2
"""Batches that are claimed but not started, besides prefetched ones."""


def supports_slots(half: PartProfile, settings: PartSettings) -> bool:
    """Return whether a half may run in slots by its profile. The engine check decides later."""
    engine = settings.choice[0] if settings.choice else None
    if engine is None or not engine.slots or settings.kv or half.row_memory is None:
        return False
    if settings.precision in engine.refused_precisions:
        return False
    kept, layers = half.row_memory.kept, engine.cache_layers
    if layers is None:
        return True
    windows = {kind.window for kind in kept if kind.window}
    known = all(kind.kind in layers for kind in kept)
    return known and len(windows) < 2 and any(kind.token_bytes for kind in kept)


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


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return the rungs: fewer slots or smaller batches, chunked prefill, KV cache in host memory,
    quantized weights, layers loaded one by one."""
    half, free = model.profile.language, free_settings(model, config, "language")
    options = EngineOptions.of(config)
    best = model.best("language")
    has_states = half.row_memory is not None and half.row_memory.has_states
    more = best.choice[0].gpu_slots if device.startswith("cuda") and not has_states else 0
    most = max(config.batch_size, more)
    found = decode_rungs(
        config.batch_size,
        [(each.precision, each.kv) for each in free],
        kv_offload=device.startswith("cuda") and any(engine.kv for engine in best.choice),
        # PEFT replaces the layers that would be loaded one by one.
        offload=config.may_fall_back("language")
        and not (half.stored_as or best.gguf)
        and not AdapterOptions.of(config).adapter,
        in_slots=[each.precision for each in free if supports_slots(half, each)],
        slots=min(ROWS, config.batch_size) if best.gguf else options.slots or most,
        chunked=not best.gguf,
    )
    return found if best.gguf else with_packed(half, found)


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
    found: list[Rung] = []
    for precision, kv in variants:
        single = Rung(
            stage="decode",
            batch=1,
            prefill=MLP_CHUNKS[-1],
            precision=precision,
            kv=kv,
            in_slots=not kv and precision in in_slots,
        )
        if kv:  # a quantized cache is the last resort of its precision
            found.append(single)
            continue
        largest = slots or batch if single.in_slots else batch
        found += [replace(single, batch=size, prefill=0) for size in sizes(largest)]
        found += [replace(single, prefill=tokens) for tokens in MLP_CHUNKS if chunked]
        if kv_offload:
            found.append(replace(single, kv="offloaded", in_slots=False))
    if not offload or not variants:
        return found
    # Layers are loaded one by one, so a batch costs hardly more than one item.
    last = Rung(
        stage="decode",
        batch=1,
        prefill=MLP_CHUNKS[-1],
        precision=variants[0][0],
        offload=True,
        in_slots=variants[0][0] in in_slots,
    )
    largest = slots or batch if last.in_slots else batch
    return found + [replace(last, batch=size) for size in sizes(largest)]


def memory(
    model: Model,
    rung: Rung,
    workload: Workload,
    *,
    device: str,
    new: int,
    selection: Iterable[str] = (),
) -> StageEstimate:
    """Add up weights, KV cache, prefill activations and, in slots, token selection with these
    settings."""
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
            score_bytes=score_bytes(selection),
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


def structure_term(model: Model, device: str) -> Term:
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
    batch_costs, each = model.profile.language.batch_costs, BYTES.get(settings.dtype, 4)
    if not batch_costs:
        return decoder_by_dimensions(
            model.profile, each, rows, workload.tokens, new=new, mlp_chunk=mlp_chunk
        )
    return expected(
        batch_costs, workload.kind, rows, workload.tokens, each=each, new=new, mlp_chunk=mlp_chunk
    )

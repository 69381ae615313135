"""Estimates the cost of captioning from features."""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

from artifacts.words import counted
from flows.checkpoint.models import Model
from flows.checkpoint.precision import BYTES, PartSettings
from flows.options.commands import RunOptions
from flows.options.model import AdapterOptions
from flows.options.text import EngineOptions
from flows.planning.costs.part import (
    free_settings,
    loading,
    precision_of,
    settings_as_run,
    source_of_figures,
)
from flows.planning.costs.slots import prefetched_term, slot_terms, supports_slots
from flows.planning.estimate import (
    Expected,
    Purpose,
    StageEstimate,
    Term,
    decoder_by_dimensions,
    expected,
)
from flows.planning.rungs import MLP_CHUNKS, Rung, sizes
from flows.planning.seconds import Pass, WorkEstimate
from flows.planning.terms import (
    adapter_terms,
    around,
    attention_terms,
    cache,
    prefetch_of,
    products,
    weights,
)
from flows.planning.todo import RemainingWork
from flows.planning.workloads import Workload
from stages.decode.engines import engines_for
from stages.decode.engines.slot_load import SlotLoad

SPELLED_BYTES = 1450
"""Bytes a token that llguidance takes at the most while it reads a tokenizer; it keeps half of
them. Measured: 208 MiB for 151,000 tokens of 9 bytes."""
MANY_WORDS = 150_000
"""Tokens of a model of which it is not known how many it has."""
STEP_CALLS = 30
"""Linear layers that generating one token calls as long as, beside those of the model."""


def rungs(model: Model, config: RunOptions, device: str) -> list[Rung]:
    """Return fewer slots or smaller batches, prompts in pieces, a cache elsewhere, fewer bits,
    layers one by one."""
    half, free = model.profile.language, free_settings(model, config, "language")
    engines = engines_for(EngineOptions.of(config).engine)
    return decode_rungs(
        config.batch_size,
        [(each.precision, each.kv) for each in free],
        elsewhere=device.startswith("cuda") and any(engine.kv for engine in engines),
        # PEFT's layers stand in the places of those that would come one by one, and a compiled
        # step has all of them.
        offload=config.may_fall_back("language")
        and not (half.stored_as or AdapterOptions.of(config).adapter or engines[0].compiled),
        seated=[each.precision for each in free if supports_slots(half, each)],
    )


def decode_rungs(
    batch: int,
    variants: Sequence[tuple[str, str]],
    *,
    elsewhere: bool,
    offload: bool,
    seated: Container[str] = (),
) -> list[Rung]:
    """Return rungs as for encode, and within each precision more. These are prompts read in pieces,
    and, where it may be kept `elsewhere`, the KV cache in host memory. `variants` are precisions,
    each with `quantized` if the KV cache is, else with an empty text; those that are `seated` have
    slots in place of batches."""
    found: list[Rung] = []
    for precision, kv in variants:
        single = Rung(
            stage="decode",
            batch=1,
            prefill=MLP_CHUNKS[-1],
            precision=precision,
            kv=kv,
            seated=not kv and precision in seated,
        )
        if kv:  # where it is, all else was tried
            found.append(single)
            continue
        found += [replace(single, batch=size, prefill=0) for size in sizes(batch)]
        found += [replace(single, prefill=tokens) for tokens in MLP_CHUNKS]
        if elsewhere:
            found.append(replace(single, kv="offloaded", seated=False))
    if not offload or not variants:
        return found
    # Layers come to the device one by one, so that a batch costs hardly more than an item.
    last = Rung(
        stage="decode",
        batch=1,
        prefill=MLP_CHUNKS[-1],
        precision=variants[0][0],
        offload=True,
        seated=variants[0][0] in seated,
    )
    return found + [replace(last, batch=size) for size in sizes(batch)]


def memory(model: Model, rung: Rung, workload: Workload, *, device: str, new: int) -> StageEstimate:
    """Add up weights, the KV cache and what reading the prompts computes with."""
    half, rows = model.profile.language, workload.rows(rung.batch)
    settings = settings_as_run(model.best("language"), half, rung)
    terms = list(weights(half, settings, rung, device))
    together = 1 if rung.seated else rows
    costs = _decoder_costs(
        model, settings, workload, together, 0 if rung.seated else new, rung.prefill
    )
    if rung.seated and half.row_memory is not None:
        load = SlotLoad(
            engine=settings.choice[0],
            memory=half.row_memory,
            number_bytes=BYTES.get(settings.dtype, 4),
            slots=rows,
            tokens=workload.tokens,
            new_tokens=new,
            prompt_bytes=math.ceil(costs.peak_bytes),
            device=device,
        )
        terms += slot_terms(load)
        prefetch = prefetched_term(workload, rows)
    else:
        terms += _batch_terms(model, rung, workload, rows, new, costs)
        prefetch = prefetch_of(workload, rows, rows * workload.feature_bytes, "features")
    terms += products(half, settings, rung, together * workload.tokens, device)
    terms += adapter_terms(settings, rung, together * workload.tokens)
    terms += attention_terms(half, settings, workload, together, workload.tokens, device)
    terms += around(rung, terms, device, prefetch)
    flops = (costs.flops + new * costs.step_flops) * workload.chunks / together
    return StageEstimate.of(
        rung,
        terms,
        device=device,
        workload=workload,
        flops=flops,
        by_dimensions=not costs.known or model.profile.by_dimensions,
    )


def structure_term(model: Model, device: str) -> Term:
    """Return what it takes to keep captions to a form: the tokens, as a grammar knows them."""
    memory = model.profile.language.row_memory
    words = memory.words if memory else MANY_WORDS
    part: Purpose = "host" if device.startswith("cuda") else "workspace"
    why = f"the form of captions: {words:,} tokens x {SPELLED_BYTES:,} bytes"
    return Term(part=part, bytes=words * SPELLED_BYTES, why=why)


def _batch_terms(
    model: Model, rung: Rung, workload: Workload, rows: int, new: int, costs: Expected
) -> Iterator[Term]:
    """Yield the cache of a batch, and what reading its prompts computes with."""
    half, whole = model.profile.language, math.ceil(costs.kept_bytes)
    why = f"{counted(rows, 'row')} x ({workload.tokens:,} + {new} tokens) x "
    why += f"{whole / rows / (workload.tokens + new):,.0f} bytes"
    yield from cache(rung, whole, half, why)
    computing = max(0, math.ceil(costs.peak_bytes) - whole)
    why = f"{counted(rows, 'row')} x {workload.tokens:,} tokens: {source_of_figures(model, costs)}"
    why += ", beside the cache"
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


def work_left(model: Model, rung: Rung, left: Sequence[RemainingWork], new: int) -> WorkEstimate:
    """Count the loading of the half, and for each batch a pass over its prompts and one a token. In
    slots prompts are read one by one."""
    half, settings = model.profile.language, model.best("language")
    precision = precision_of(settings, rung)
    passes = []
    for each in left:
        workload, rows = each.workload, each.workload.rows(rung.batch)
        together = 1 if rung.seated else rows
        costs = _decoder_costs(model, settings, workload, together, 0, 0)
        run = Pass(
            precision=precision,
            flops=costs.flops,
            tokens=together * workload.tokens,
            calls=half.linear_modules,
            moved_bytes=rung.offload * settings.weight_bytes,
            times=each.left[rung.stage] / together,
        )
        step = replace(
            run,
            flops=costs.step_flops * rows / together,
            tokens=rows,
            calls=run.calls + STEP_CALLS,
            times=each.left[rung.stage] / rows * new,
        )
        passes += [run, step]
    return loading(half, settings, rung, any(each.left[rung.stage] for each in left), passes)

"""Estimates what captioning features costs; knows no vision half."""

import math
from collections.abc import Sequence
from dataclasses import replace

from artifacts.words import counted
from flows.job.config import CaptionConfig
from flows.job.models import Model
from flows.job.precision import BYTES, PartSettings
from flows.planning.batch_costs import Expected, decoder_by_dimensions, expected
from flows.planning.costs.part import (
    free_settings,
    loading,
    precision_of,
    settings_as_run,
    source_of_figures,
)
from flows.planning.estimate import StageEstimate, Term
from flows.planning.rungs import MLP_CHUNKS, Rung, sizes
from flows.planning.seconds import Pass, WorkEstimate
from flows.planning.terms import around, attention_terms, cache, prefetch_of, products, weights
from flows.planning.todo import ToDo
from flows.planning.workloads import Workload

STEP_CALLS = 30
"""Linear layers that generating one token calls as long as, beside those of the model."""


def rungs(model: Model, config: CaptionConfig, device: str) -> list[Rung]:
    """Return smaller batches, prompts in pieces, a cache elsewhere, fewer bits, layers one by
    one."""
    return decode_rungs(
        config.batch_size,
        [(each.precision, each.kv) for each in free_settings(model, config, "language")],
        on_gpu=device.startswith("cuda"),
        offload=config.is_free("language") and not model.profile.language.stored_as,
    )


def decode_rungs(
    batch: int, variants: Sequence[tuple[str, str]], *, on_gpu: bool, offload: bool
) -> list[Rung]:
    """Return rungs as for encode, and within each precision more. These are prompts read in pieces,
    and on a GPU the KV cache in host memory. `ways` are precisions, each with `quantized` if the KV
    cache is, else with an empty text."""
    found: list[Rung] = []
    for precision, kv in variants:
        single = Rung(stage="decode", batch=1, prefill=MLP_CHUNKS[-1], precision=precision, kv=kv)
        if kv:  # where it is, all else was tried
            found.append(single)
            continue
        found += [replace(single, batch=size, prefill=0) for size in sizes(batch)]
        found += [replace(single, prefill=tokens) for tokens in MLP_CHUNKS]
        if on_gpu:
            found.append(replace(single, kv="offloaded"))
    if not offload or not variants:
        return found
    # Layers come to the device one by one, so that a batch costs hardly more than an item.
    last = Rung(
        stage="decode", batch=1, prefill=MLP_CHUNKS[-1], precision=variants[0][0], offload=True
    )
    return found + [replace(last, batch=size) for size in sizes(batch)]


def memory(model: Model, rung: Rung, workload: Workload, *, device: str, new: int) -> StageEstimate:
    """Add up weights, the KV cache and what reading the prompts computes with."""
    half, rows = model.profile.language, workload.rows(rung.batch)
    settings = settings_as_run(model.best("language"), half, rung)
    terms = list(weights(half, settings, rung, device))
    costs = _decoder_costs(model, settings, workload, rows, new, rung.prefill)
    whole = math.ceil(costs.kept_bytes)
    why = f"{counted(rows, 'row')} x ({workload.tokens:,} + {new} tokens) x "
    why += f"{whole / rows / (workload.tokens + new):,.0f} bytes"
    terms += cache(rung, whole, half, why)
    computing = max(0, math.ceil(costs.peak_bytes) - whole)
    why = f"{counted(rows, 'row')} x {workload.tokens:,} tokens: {source_of_figures(model, costs)}"
    why += ", beside the cache"
    if rung.prefill:
        why += f", {rung.prefill} at once through an MLP"
    terms.append(Term(part="activation", bytes=computing, why=why))
    terms += products(half, settings, rung, rows * workload.tokens, device)
    terms += attention_terms(half, settings, workload, rows, workload.tokens, device)
    prefetch = prefetch_of(workload, rows, rows * workload.feature_bytes, "features")
    terms += around(rung, terms, device, prefetch)
    flops = (costs.flops + new * costs.step_flops) * workload.chunks / rows
    return StageEstimate.of(
        rung,
        terms,
        device=device,
        workload=workload,
        flops=flops,
        by_dimensions=not costs.known or model.profile.by_dimensions,
    )


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


def work_left(model: Model, rung: Rung, left: Sequence[ToDo], new: int) -> WorkEstimate:
    """Count the loading of the half, and for each batch a pass over its prompts and one a token."""
    half, settings = model.profile.language, model.best("language")
    precision = precision_of(settings, rung)
    passes = []
    for each in left:
        workload, rows = each.workload, each.workload.rows(rung.batch)
        costs = _decoder_costs(model, settings, workload, rows, 0, 0)
        run = Pass(
            precision=precision,
            flops=costs.flops,
            tokens=rows * workload.tokens,
            calls=half.linear_modules,
            moved_bytes=rung.offload * settings.weight_bytes,
            times=each.left[rung.stage] / rows,
        )
        step = replace(
            run,
            flops=costs.step_flops,
            tokens=rows,
            calls=run.calls + STEP_CALLS,
            times=run.times * new,
        )
        passes += [run, step]
    return loading(half, settings, rung, any(each.left[rung.stage] for each in left), passes)

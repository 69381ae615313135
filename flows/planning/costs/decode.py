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
    told_of,
)
from flows.planning.estimate import StageEstimate, Term
from flows.planning.rungs import PREFILLS, Rung, sizes
from flows.planning.seconds import Pass, WorkEstimate
from flows.planning.terms import ahead_of, around, attention_terms, cache, products, weights
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
    batch: int, ways: Sequence[tuple[str, str]], *, on_gpu: bool, offload: bool
) -> list[Rung]:
    """Return rungs as for encode, and within each precision more. These are prompts read in pieces,
    and on a GPU the KV cache in host memory. `ways` are precisions, each with `quantized` if the KV
    cache is, else with an empty text."""
    found: list[Rung] = []
    for precision, kv in ways:
        alone = Rung(stage="decode", batch=1, prefill=PREFILLS[-1], precision=precision, kv=kv)
        if kv:  # where it is, all else was tried
            found.append(alone)
            continue
        found += [replace(alone, batch=size, prefill=0) for size in sizes(batch)]
        found += [replace(alone, prefill=tokens) for tokens in PREFILLS]
        if on_gpu:
            found.append(replace(alone, kv="offloaded"))
    if not offload or not ways:
        return found
    # Layers come to the device one by one, so that a batch costs hardly more than an item.
    last = Rung(stage="decode", batch=1, prefill=PREFILLS[-1], precision=ways[0][0], offload=True)
    return found + [replace(last, batch=size) for size in sizes(batch)]


def memory(model: Model, rung: Rung, load: Workload, *, device: str, new: int) -> StageEstimate:
    """Add up weights, the KV cache and what reading the prompts computes with."""
    half, rows = model.profile.language, load.rows(rung.batch)
    settings = settings_as_run(model.best("language"), half, rung)
    terms = list(weights(half, settings, rung, device))
    work = _decoder_work(model, settings, load, rows, new, rung.prefill)
    whole = math.ceil(work.kept_bytes)
    why = f"{counted(rows, 'row')} x ({load.tokens:,} + {new} tokens) x "
    why += f"{whole / rows / (load.tokens + new):,.0f} bytes"
    terms += cache(rung, whole, half, why)
    computing = max(0, math.ceil(work.peak_bytes) - whole)
    why = (
        f"{counted(rows, 'row')} x {load.tokens:,} tokens: {told_of(model, work)}, beside the cache"
    )
    if rung.prefill:
        why += f", {rung.prefill} at once through an MLP"
    terms.append(Term(part="activation", bytes=computing, why=why))
    terms += products(half, settings, rung, rows * load.tokens, device)
    terms += attention_terms(half, settings, load, rows, load.tokens, device)
    ahead = ahead_of(load, rows, rows * load.feature_bytes, "features")
    terms += around(rung, terms, device, ahead)
    flops = (work.flops + new * work.step_flops) * load.chunks / rows
    return StageEstimate.of(
        rung,
        terms,
        device=device,
        load=load,
        flops=flops,
        by_dimensions=not work.known or model.profile.by_dimensions,
    )


def _decoder_work(
    model: Model, settings: PartSettings, load: Workload, rows: int, new: int, prefill: int
) -> Expected:
    batch_costs, each = model.profile.language.batch_costs, BYTES.get(settings.dtype, 4)
    if not batch_costs:
        return decoder_by_dimensions(
            model.profile, each, rows, load.tokens, new=new, prefill=prefill
        )
    return expected(batch_costs, load.kind, rows, load.tokens, each=each, new=new, prefill=prefill)


def work_left(model: Model, rung: Rung, left: Sequence[ToDo], new: int) -> WorkEstimate:
    """Count the loading of the half, and for each batch a pass over its prompts and one a token."""
    half, settings = model.profile.language, model.best("language")
    precision = precision_of(settings, rung)
    passes = []
    for each in left:
        load, rows = each.load, each.load.rows(rung.batch)
        work = _decoder_work(model, settings, load, rows, 0, 0)
        run = Pass(
            precision=precision,
            flops=work.flops,
            tokens=rows * load.tokens,
            calls=half.linear_modules,
            moved_bytes=rung.offload * settings.weight_bytes,
            times=each.left[rung.stage] / rows,
        )
        step = replace(
            run,
            flops=work.step_flops,
            tokens=rows,
            calls=run.calls + STEP_CALLS,
            times=run.times * new,
        )
        passes += [run, step]
    return loading(half, settings, rung, any(each.left[rung.stage] for each in left), passes)

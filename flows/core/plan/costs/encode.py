"""Estimates the cost of running frames through the vision half."""

import math
from dataclasses import dataclass, replace
from functools import partial

from artifacts.wording import counted
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import BYTES, PartSettings
from flows.core.pipelines import STAGES
from flows.core.plan.costs.part import figures_source, settings_as_run
from flows.core.plan.estimate import Expected, encoder_by_dimensions, expected
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Conditions, StageEstimate, Term
from flows.core.plan.terms import (
    LIBRARIES_BYTES,
    attention_terms,
    batches_per_block,
    block_prefetch,
    frames_prefetch,
    overhead_terms,
    products,
    reader_terms,
    waiting_terms,
    weights,
)
from flows.core.plan.workloads import PIXEL_BYTES, Workload
from stages.models.encoding import FRAMES_PER_BATCH
from stages.models.half_job import RECORDINGS

RUNTIME_BYTES = 8 << 20
"""Bytes of a loaded ONNX graph besides its weights: 5 to 8 MiB were measured."""
PROCESSOR_BYTES = 64 << 20
"""Bytes of a copy of a processor: 35 to 57 MiB were measured with a tokenizer of 150,000 tokens."""
EMBED_BYTES = 12 << 20
"""Bytes of the embed stage besides its imports and model. It reads no prompts and its outputs are
small: 7 to 9 MiB were measured with tokenizers of any size, which load with the imports."""


def memory(
    model: Model,
    rung: Rung,
    workload: Workload,
    conditions: Conditions,
    libraries: int = LIBRARIES_BYTES,
    processor: int = PROCESSOR_BYTES,
) -> StageEstimate:
    """Add up weights, pixels and activations; for a joint model, only pixels. `libraries`: bytes of
    the stage besides its imports and model. `processor`: bytes of a copy of the processor, which
    each reader but the first has."""
    device = conditions.device
    half, passes = model.profile.vision, passes_of(model, workload, rung)
    rows, single, at_once = passes.rows, passes.input, passes.at_once
    settings = settings_as_run(model.best("vision"), half, rung)
    pixels = rows * workload.units * PIXEL_BYTES
    terms = list(weights(half, settings, rung, device))
    costs = None
    if settings.graph:
        why = "ONNX Runtime's own memory"
        terms.append(Term(part="workspace", bytes=RUNTIME_BYTES, why=why))
    if model.profile.route == "joint":
        why = f"{counted(rows, 'chunk')} x {workload.units:,} pixel values, "
        why += "passed on unchanged"
        terms.append(Term(part="activation", bytes=2 * pixels, why=why))
    else:
        in_32 = settings.graph and settings.graph.precision != "fp16"
        computed = replace(settings, dtype="float32") if in_32 else settings
        costs = _encoder_costs(model, computed, at_once, single, rung.prefill)
        why = f"{counted(at_once, 'chunk')} x {single.units:,} pixel values: "
        why += figures_source(costs)
        if rung.prefill:
            why += f", {rung.prefill} positions at once through an MLP"
        terms.append(Term(part="activation", bytes=math.ceil(costs.peak_bytes), why=why))
        waiting = math.ceil(batches_per_block(rung, workload, rows) * passes.count) - 1
        terms += waiting_terms(waiting if rung.block else 0, single, at_once, costs, device)
        if passes.count > 1 and not rung.block:
            kept = math.ceil((passes.count - 1) * costs.kept_bytes)
            why = "features of the other passes of a batch"
            terms.append(Term(part="activation", bytes=kept, why=why))
        terms += attention_terms(half, settings, single, at_once, single.units, device)
        # Patches are not counted, but each is multiplied with all layer weights.
        tokens = math.ceil(costs.flops / (2 * max(1, half.linear_parameters)))
        terms += products(half, settings, rung, tokens, device)
    prefetch = (
        block_prefetch(rung, workload, rows) if rung.block else frames_prefetch(workload, rows)
    )
    terms += overhead_terms(terms, device, prefetch, libraries)
    terms += reader_terms(workload, max(rows, rung.block), conditions.readers, processor, device)
    flops = costs.flops * workload.chunks * passes.count / rows if costs else 0
    guessed = costs is not None and not costs.known
    return StageEstimate(
        rung=rung,
        terms=tuple(terms),
        device=device,
        workload=workload,
        flops=flops,
        by_dimensions=guessed,
    )


memory_of_embedding = partial(memory, libraries=EMBED_BYTES, processor=0)


def recordings_term(model: Model, estimate: StageEstimate, device: str) -> Term | None:
    """Return the memory of the recorded passes of a vision half (stages/models/halves/recorded.py):
    the activations of one, which all share, and the inputs of each. None where none is recorded."""
    rung, workload = estimate.rung, estimate.workload
    stage = STAGES[rung.stage]
    if not device.startswith("cuda") or stage.part != "vision" or rung.offload:
        return None
    if model.profile.route == "joint" or model.best("vision").graph:
        return None
    passes = passes_of(model, workload, rung)
    inputs = RECORDINGS * passes.at_once * passes.input.units * PIXEL_BYTES
    why = f"recorded passes of at most {RECORDINGS} shapes, if there is room"
    return Term(part="workspace", bytes=estimate.bytes_of("activation") + inputs, why=why)


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """How a batch passes the half."""

    rows: int
    """Chunks of the batch."""
    input: Workload
    """What is encoded apart from others: a chunk, or one image of it."""
    at_once: int
    """Inputs of a pass."""
    count: float
    """Passes of the batch."""


def passes_of(model: Model, workload: Workload, rung: Rung) -> Passes:
    """Return how a batch of a workload passes the half on a rung."""
    images = workload.frames * workload.parts
    if model.in_batches:
        rows = workload.rows(rung.batch, FRAMES_PER_BATCH)
        return Passes(rows=rows, input=workload, at_once=rows, count=1)
    single = replace(workload.with_frames(1), parts=1) if STAGES[rung.stage].vectors else workload
    of_chunk = images if single is not workload else 1
    at_once = model.pass_rows(images // of_chunk)
    least = max(1, at_once // of_chunk)
    rows = max(min(least, workload.chunks), workload.rows(rung.batch, FRAMES_PER_BATCH))
    return Passes(rows=rows, input=single, at_once=at_once, count=max(1, rows * of_chunk / at_once))


def _encoder_costs(
    model: Model, settings: PartSettings, rows: int, workload: Workload, mlp_chunk: int
) -> Expected:
    half, item_bytes = model.profile.vision, BYTES.get(settings.dtype, 4)
    if not half.batch_costs:
        return encoder_by_dimensions(half, item_bytes, rows, workload.units, workload.feature_bytes)
    return expected(
        half.batch_costs,
        workload.kind,
        rows,
        workload.units,
        item_bytes=item_bytes,
        mlp_chunk=mlp_chunk,
    )

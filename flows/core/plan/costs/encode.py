"""The encode and embed stages: rungs from fast to small, and the memory of running frames through
the vision half."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from artifacts.wording import counted
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import QUANTIZED
from flows.core.options.commands import RunOptions
from flows.core.pipelines import STAGES
from flows.core.plan.half import (
    BatchEstimate,
    encoder_batch,
    free_settings,
    settings_as_run,
    with_packed,
)
from flows.core.plan.ladder import MLP_CHUNKS, Rung, sizes
from flows.core.plan.stage_estimate import Conditions, Cost, Reason, StageEstimate, Term
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
from stages.memory.oom_retry import next_sizes
from stages.models.encoding import FRAMES_PER_BATCH
from stages.models.half_job import RECORDINGS

BLOCK = 256
"""Maximum chunks that pass a streamed half together, if they all fit and have no more images than
allowed by stages/memory/oom_retry.py says."""
RUNTIME_BYTES = 8 << 20
"""Bytes of a loaded ONNX graph besides its weights: 5 to 8 MiB were measured."""
PROCESSOR_BYTES = 64 << 20
"""Bytes of a copy of a processor: 35 to 57 MiB were measured with a tokenizer of 150,000 tokens."""
EMBED_BYTES = 12 << 20
"""Bytes of the embed stage besides its imports and model. It reads no prompts and its outputs are
small: 7 to 9 MiB were measured with tokenizers of any size, which load with the imports."""


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return the rungs: smaller batches, MLP chunks, streamed layers, quantized weights."""
    half, settings = model.profile.vision, free_settings(model, config, "vision")
    # Quantized weights cannot be streamed, a joint model's pixels need none, a graph is one unit.
    is_split = model.profile.route != "joint" and not settings[0].graph
    plain = not half.stored_as and settings[0].precision not in QUANTIZED
    candidates = encode_rungs(
        config.batch_size,
        [s.precision for s in settings],
        streamed=is_split and plain and half.layers > 1,
        weights=is_split,
        stage=stage,
    )
    return with_packed(half, candidates) if is_split else candidates


def encode_rungs(
    batch: int,
    precisions: Sequence[str],
    *,
    streamed: bool,
    weights: bool = True,
    stage: str = "encode",
) -> list[Rung]:
    """Return smaller batches, then MLP chunks, then streamed layers; repeat per precision, best
    first. Only the first precision can be `streamed`. Without `weights` (a model that passes pixels
    on unchanged), there are only batches."""
    candidates: list[Rung] = []
    for precision in precisions:
        single = Rung(stage=stage, batch=1, precision=precision)
        candidates += [replace(single, batch=size) for size in sizes(batch)]
        candidates += [replace(single, prefill=tokens) for tokens in MLP_CHUNKS if weights]
        if streamed and precision == precisions[0]:
            candidates += _streamed(batch, single)
    return candidates


def _streamed(batch: int, single: Rung) -> list[Rung]:
    """Return smaller blocks, then smaller batches. The batch size affects output bytes, the block
    size does not."""
    candidates: list[Rung] = []
    size, block = batch, max(batch, BLOCK)
    while block:
        candidates.append(replace(single, batch=size, block=block, offload=True))
        size, block = next_sizes(size, block)
    return candidates + [replace(candidates[-1], prefill=tokens) for tokens in MLP_CHUNKS]


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
    terms = list(weights(half, settings, rung, device))
    costs = None
    if settings.graph:
        terms.append(Term.of("workspace", RUNTIME_BYTES, Reason.GRAPH_RUNTIME))
    if model.profile.route == "joint":
        numbers = {"rows": counted(rows, "chunk"), "units": workload.units}
        size = 2 * rows * workload.units * PIXEL_BYTES
        terms.append(Term.of("activation", size, Reason.PIXELS_AS_FEATURES, **numbers))
    else:
        in_32 = settings.graph and settings.graph.precision != "fp16"
        computed = replace(settings, dtype="float32") if in_32 else settings
        costs = encoder_batch(half, computed, at_once, single, rung.prefill)
        terms.append(_pass_term(single, at_once, costs, rung.prefill))
        waiting = math.ceil(batches_per_block(rung, workload, rows) * passes.count) - 1
        terms += waiting_terms(waiting if rung.block else 0, single, at_once, costs, device)
        if passes.count > 1 and not rung.block:
            kept_bytes = (passes.count - 1) * costs.kept_bytes
            terms.append(Term.of("activation", kept_bytes, Reason.OTHER_PASSES))
        terms += attention_terms(half, settings, single, at_once, single.units, device)
        # Patches are not counted, but each is multiplied with all layer weights.
        tokens = math.ceil(costs.flops / (2 * max(1, half.linear_parameters)))
        terms += products(half, settings, rung, tokens, device)
    prefetch = (
        block_prefetch(rung, workload, rows) if rung.block else frames_prefetch(workload, rows)
    )
    terms += overhead_terms(terms, conditions, prefetch, libraries)
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


def _pass_term(single: Workload, at_once: int, costs: BatchEstimate, chunk: int) -> Term:
    """Return the memory of a pass of so many inputs. `chunk`: positions at once through an MLP."""
    numbers = {"rows": counted(at_once, "chunk"), "units": single.units, "source": costs.source}
    reason = Reason.PASS_IN_CHUNKS if chunk else Reason.PASS
    return Term.of("activation", costs.peak_bytes, reason, **numbers, chunk=chunk)


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
    size = estimate.bytes_of("activation") + inputs
    return Term.of("workspace", size, Reason.RECORDED_PASSES, shapes=RECORDINGS)


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
    apart = STAGES[rung.stage].vectors
    single = replace(workload.with_frames(1), parts=1) if apart else workload
    of_chunk = images if apart else 1
    at_once = model.pass_rows(images // of_chunk)
    least = max(1, at_once // of_chunk)
    rows = max(min(least, workload.chunks), workload.rows(rung.batch, FRAMES_PER_BATCH))
    return Passes(rows=rows, input=single, at_once=at_once, count=max(1, rows * of_chunk / at_once))


COST = Cost(rungs=rungs, memory=memory)
EMBED_COST = replace(COST, memory=partial(memory, libraries=EMBED_BYTES, processor=0))

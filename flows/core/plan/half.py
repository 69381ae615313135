"""Estimates what a batch takes of a half on a rung: from the dry runs of its profile, or from its
dimensions. Also selects the settings and rungs of a half. Imports no model library.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from artifacts.schema import Part
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import BYTES, DTYPES, PartSettings, weight_bytes
from flows.core.options.commands import RunOptions
from flows.core.plan.ladder import MLP_CHUNKS, Rung
from flows.core.plan.workloads import Workload
from stages.models.footprint import ITEM_BYTES, BatchCost, FittedCosts, Size
from stages.models.profile import ModelProfile, PartProfile

FEW_SLOTS = 8
"""Slots from which on chunked prefill is tried before there are fewer."""
PATCH_NUMBERS = 3 * 14 * 14
"""Pixel values per encoder token, assumed: a patch of 14 by 14."""
ENCODER_ROWS = 10
"""Values per token that an encoder holds, in multiples of its width, assumed: 4 of the MLP, 4 of
attention, and 2 of the residual stream."""
DECODER_ROWS = 3
"""Values per token that a decoder holds, in multiples of its width, besides two of its MLP."""


def free_settings(model: Model, config: RunOptions, part: Part) -> tuple[PartSettings, ...]:
    """Return the settings that a command allows for a part, best first. Settings that change words
    or are many times slower are included only with `auto`."""
    every = model.settings[part]
    return every if config.may_fall_back(part) else every[:1]


def settings_as_run(settings: PartSettings, half: PartProfile, rung: Rung) -> PartSettings:
    if settings.graph or settings.gguf:
        return settings
    precision = rung.precision or settings.precision
    dtype = DTYPES.get(precision, settings.dtype)
    cast = settings.cast
    taken = 0
    if half.parameters:
        taken = weight_bytes(half, precision, dtype, cast=cast, packed=rung.packed)
    return replace(settings, precision=precision, dtype=dtype, weight_bytes=taken)


def with_packed(half: PartProfile, rungs: Sequence[Rung]) -> list[Rung]:
    """Return the rungs of a half, and below them the same with layers that stay packed, if another
    program stored any in 4 or 8 bit. A KV cache in host memory is slower than unpacking. On a card
    that takes packed layers only, chunked prefill makes room for more slots."""
    if not half.packed_parameters:
        return list(rungs)
    candidates = [rung for rung in rungs if rung.kv != "offloaded"]
    for rung in rungs:
        packed = replace(rung, packed=True)
        candidates.append(packed)
        if rung.in_slots and 1 < rung.batch <= FEW_SLOTS and not rung.prefill:
            candidates += [replace(packed, prefill=tokens) for tokens in MLP_CHUNKS]
    return candidates


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchEstimate:
    """What one batch is expected to take."""

    peak_bytes: float
    """Peak bytes besides the weights, with features or KV cache."""
    kept_bytes: float
    """Bytes of the features, or of the KV cache after the last token."""
    waiting_bytes: float = 0
    """Bytes that an encoder batch holds while it waits for a streamed layer."""
    flops: float
    """Operations of encoding, or of prefill."""
    step_flops: float = 0
    known: bool = False
    """Whether the figures come from dry runs, not dimensions."""

    @property
    def source(self) -> str:
        return "a dry run" if self.known else "an estimate by dimensions"


def encoder_batch(
    half: PartProfile, settings: PartSettings, rows: int, inputs: Workload, mlp_chunk: int
) -> BatchEstimate:
    """Return what a batch of so many `inputs` takes of an encoder."""
    item_bytes, costs, units = BYTES.get(settings.dtype, 4), half.batch_costs, inputs.units
    if not costs:
        return encoder_by_dimensions(half, item_bytes, rows, units, inputs.feature_bytes)
    return by_dry_runs(costs, inputs.kind, rows, units, item_bytes=item_bytes, mlp_chunk=mlp_chunk)


def decoder_batch(
    profile: ModelProfile,
    settings: PartSettings,
    rows: int,
    tokens: int,
    *,
    kind: str,
    new: int = 0,
    mlp_chunk: int = 0,
) -> BatchEstimate:
    """Return what a batch of `rows` with `tokens` each takes of a decoder, which generates `new`
    tokens for each."""
    item_bytes, costs = BYTES.get(settings.dtype, 4), profile.language.batch_costs
    if not costs:
        return _decoder_by_dimensions(profile, item_bytes, rows, tokens, new, mlp_chunk)
    return by_dry_runs(
        costs, kind, rows, tokens, item_bytes=item_bytes, new=new, mlp_chunk=mlp_chunk
    )


def by_dry_runs(
    batch_costs: Sequence[BatchCost],
    kind: str,
    rows: int,
    units: int,
    *,
    item_bytes: int = ITEM_BYTES,
    new: int = 0,
    mlp_chunk: int = 0,
) -> BatchEstimate:
    """Return what a batch of `rows` with `units` each takes. `item_bytes`: bytes per number. `new`:
    tokens that a decoder generates. `batch_costs` must not be empty."""
    costs, size, wide = FittedCosts(batch_costs), Size(kind, rows, units), item_bytes > ITEM_BYTES
    return BatchEstimate(
        peak_bytes=costs.peak(size, item_bytes=item_bytes, new_tokens=new, mlp_chunk=mlp_chunk),
        kept_bytes=costs.kept(Size(kind, rows, units + new), item_bytes),
        waiting_bytes=costs.figure(
            size, lambda cost: cost.waiting_bytes_32 if wide else cost.waiting_bytes
        ),
        flops=costs.figure(size, lambda cost: cost.flops),
        step_flops=costs.figure(size, lambda cost: cost.step_flops),
        known=True,
    )


def encoder_by_dimensions(
    half: PartProfile, item_bytes: int, rows: int, units: int, kept: int
) -> BatchEstimate:
    """Return what a batch takes of an encoder, assuming 12 x width² parameters per layer.
    `item_bytes`: bytes per number. `kept`: feature bytes per row."""
    width = math.sqrt(half.layer_parameters / 12)
    tokens = rows * units / PATCH_NUMBERS
    return BatchEstimate(
        peak_bytes=item_bytes * (tokens * width * ENCODER_ROWS + rows * units) + rows * kept,
        kept_bytes=rows * kept,
        waiting_bytes=item_bytes * (2 * tokens * width + rows * units),
        flops=2 * half.parameters * tokens,
    )


def _decoder_by_dimensions(
    profile: ModelProfile, item_bytes: int, rows: int, tokens: int, new: int, mlp_chunk: int
) -> BatchEstimate:
    """Return what a batch takes of a decoder, assuming its feature width and a full-width KV
    cache."""
    half, width = profile.language, profile.feature_width
    inside = max(width, (half.layer_parameters - 4 * width**2) / (3 * width))
    outside = half.outside_parameters
    stack, vocabulary = half.parameters - outside, outside / width
    cache = 2 * half.layers * width * item_bytes * rows
    at_once = min(tokens * rows, mlp_chunk or tokens * rows)
    reading = (tokens * rows * DECODER_ROWS * width + at_once * 2 * inside) * item_bytes
    logits = rows * vocabulary * 4
    return BatchEstimate(
        peak_bytes=max(cache * tokens + reading, cache * (tokens + new)) + logits,
        kept_bytes=cache * (tokens + new),
        flops=2 * stack * tokens * rows,
        step_flops=2 * half.parameters * rows,
    )

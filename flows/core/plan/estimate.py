"""Estimates the memory and operations of a stage on a rung, from a model profile. Imports no model
library.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stages.models.footprint import (
    ITEM_BYTES,
    BatchCost,
    at_size,
    kept_bytes,
    peak_bytes,
)
from stages.models.profile import ModelProfile, PartProfile

PATCH_NUMBERS = 3 * 14 * 14
"""Pixel values per encoder token, assumed: a patch of 14 by 14."""
ENCODER_ROWS = 10
"""Values per token that an encoder holds, in multiples of its width, assumed: 4 of the MLP, 4 of
attention, and 2 of the residual stream."""
DECODER_ROWS = 3
"""Values per token that a decoder holds, in multiples of its width, besides two of its MLP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """The expected costs of one batch."""

    peak_bytes: float
    """Peak bytes besides the weights, with features or KV cache."""
    kept_bytes: float
    """Bytes of the features, or of the KV cache after the last token."""
    waiting_bytes: float
    """Bytes that an encoder batch holds while it waits for a streamed layer."""
    flops: float
    """Operations of encoding, or of prefill."""
    step_flops: float
    known: bool
    """Whether the costs come from dry runs, not dimensions."""


def expected(
    batch_costs: Sequence[BatchCost],
    kind: str,
    rows: int,
    units: int,
    *,
    item_bytes: int = ITEM_BYTES,
    new: int = 0,
    mlp_chunk: int = 0,
) -> Expected:
    """Return the costs of a batch of `rows` with `units` each. `item_bytes`: bytes per number.
    `new`: tokens that a decoder generates. `batch_costs` must not be empty."""
    peak = peak_bytes(
        batch_costs,
        kind=kind,
        rows=rows,
        units=units,
        item_bytes=item_bytes,
        new_tokens=new,
        mlp_chunk=mlp_chunk,
    )
    return Expected(
        peak_bytes=peak,
        kept_bytes=kept_bytes(
            batch_costs, kind=kind, rows=rows, units=units + new, item_bytes=item_bytes
        ),
        waiting_bytes=at_size(
            batch_costs,
            lambda w: w.waiting_bytes_32 if item_bytes > ITEM_BYTES else w.waiting_bytes,
            kind=kind,
            rows=rows,
            units=units,
        ),
        flops=at_size(batch_costs, lambda w: w.flops, kind=kind, rows=rows, units=units),
        step_flops=at_size(batch_costs, lambda w: w.step_flops, kind=kind, rows=rows, units=units),
        known=True,
    )


def encoder_by_dimensions(
    half: PartProfile, item_bytes: int, rows: int, units: int, kept: int
) -> Expected:
    """Return the costs of an encoder, assuming 12 x width² parameters per layer.
    `item_bytes`: bytes per number. `kept`: feature bytes per row."""
    width = math.sqrt(half.layer_parameters / 12)
    tokens = rows * units / PATCH_NUMBERS
    return Expected(
        peak_bytes=item_bytes * (tokens * width * ENCODER_ROWS + rows * units) + rows * kept,
        kept_bytes=rows * kept,
        waiting_bytes=item_bytes * (2 * tokens * width + rows * units),
        flops=2 * half.parameters * tokens,
        step_flops=0,
        known=False,
    )


def decoder_by_dimensions(
    profile: ModelProfile,
    item_bytes: int,
    rows: int,
    tokens: int,
    *,
    new: int = 0,
    mlp_chunk: int = 0,
) -> Expected:
    """Return the costs of a decoder, assuming its feature width and a full-width KV cache."""
    half, width = profile.language, profile.feature_width
    inside = max(width, (half.layer_parameters - 4 * width**2) / (3 * width))
    outside = half.outside_parameters
    stack, vocabulary = half.parameters - outside, outside / width
    cache = 2 * half.layers * width * item_bytes * rows
    at_once = min(tokens * rows, mlp_chunk or tokens * rows)
    reading = (tokens * rows * DECODER_ROWS * width + at_once * 2 * inside) * item_bytes
    logits = rows * vocabulary * 4
    return Expected(
        peak_bytes=max(cache * tokens + reading, cache * (tokens + new)) + logits,
        kept_bytes=cache * (tokens + new),
        waiting_bytes=0,
        flops=2 * stack * tokens * rows,
        step_flops=2 * half.parameters * rows,
        known=False,
    )

"""What computing takes at sizes that were not tried, told from those that were, the works of a
card; and arithmetic on a half's dimensions where there are none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.models import footprint
from stages.models.card import HalfCard, ModelCard
from stages.models.footprint import ITEM_BYTES, Work

PATCH_NUMBERS = 3 * 14 * 14
"""Pixel numbers that one token of an encoder is assumed to be made of: a patch of 14 by 14."""
ENCODER_ROWS = 10
"""So many rows of its width an encoder is assumed to hold a token: 4 of the MLP, 4 of attention,
and 2 of what goes on."""
DECODER_ROWS = 3
"""The same of a decoder, beside two of its MLP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What one pass is expected to take."""

    peak_bytes: float
    """Lives at one moment beside the weights; what is handed over, or the KV cache, included."""
    end_bytes: float = 0
    """Lives when the last token is written, the KV cache included, where that is more."""
    kept_bytes: float
    """Features, or the KV cache after the prompt."""
    flops: float
    step_flops: float
    known: bool
    """Whether runs on tensors without data told it, and not dimensions."""


def expected(
    works: Sequence[Work], kind: str, rows: int, units: int, each: int = ITEM_BYTES, new: int = 0
) -> Expected:
    """Of so many rows of so many units, in numbers of `each` bytes, and of `new` tokens after them.
    `works` must not be empty."""
    size: dict[str, Any] = {"kind": kind, "rows": rows, "units": units}
    reading = footprint.peak_bytes(works, **size, item_bytes=each)
    written = footprint.peak_bytes(works, **size, item_bytes=each, new_tokens=new)
    return Expected(
        peak_bytes=reading,
        end_bytes=written if written > reading else 0,
        kept_bytes=footprint.kept_bytes(works, **size, item_bytes=each),
        flops=footprint.flops(works, **size),
        step_flops=footprint.step_flops(works, **size),
        known=True,
    )


def encoder_by_dimensions(half: HalfCard, each: int, rows: int, units: int, kept: int) -> Expected:
    """Of an encoder whose layers are assumed to hold 12 times their width squared; `each`: bytes of
    a number, `kept`: of the features of a row."""
    width = math.sqrt(half.layer_parameters / 12)
    tokens = rows * units / PATCH_NUMBERS
    return Expected(
        peak_bytes=each * (tokens * width * ENCODER_ROWS + rows * units) + rows * kept,
        kept_bytes=rows * kept,
        flops=2 * half.parameters * tokens,
        step_flops=0,
        known=False,
    )


def decoder_by_dimensions(card: ModelCard, each: int, rows: int, tokens: int) -> Expected:
    """Of a decoder as wide as its features, with a KV cache of its full width."""
    half, width = card.language, card.feature_width
    inside = max(width, (half.layer_parameters - 4 * width**2) / (3 * width))
    stack = half.layers * half.layer_parameters
    vocabulary = max(0, half.parameters - stack) / width
    kept = 2 * half.layers * width * each * tokens * rows
    reading = tokens * rows * (2 * inside + DECODER_ROWS * width) * each
    return Expected(
        peak_bytes=kept + reading + rows * vocabulary * 4,
        kept_bytes=kept,
        flops=2 * stack * tokens * rows,
        step_flops=2 * half.parameters * rows,
        known=False,
    )

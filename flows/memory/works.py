"""What computing takes at sizes that were not tried, told from those that were: lines through the
works of a card; and arithmetic on a half's dimensions where there are none."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stages.models.card import HalfCard, ModelCard
from stages.models.footprint import Work

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
    kept_bytes: float
    """Features, or the KV cache after the prompt."""
    flops: float
    step_flops: float
    known: bool
    """Whether runs on tensors without data told it, and not dimensions."""


def expected(works: Sequence[Work], kind: str, rows: int, units: int) -> Expected:
    """Of so many rows of so many units. `works` must not be empty."""
    alike = [work for work in works if work.kind == kind] or list(works)

    def of(value: Callable[[Work], float]) -> float:
        return _at(alike, value, rows, units)

    return Expected(
        peak_bytes=of(lambda work: work.peak_bytes),
        kept_bytes=of(lambda work: work.kept_bytes),
        flops=of(lambda work: work.flops),
        step_flops=of(lambda work: work.step_flops),
        known=True,
    )


def _at(works: Sequence[Work], value: Callable[[Work], float], rows: int, units: int) -> float:
    """A line through the numbers of units; of each number, a line through those of rows."""
    points = []
    for size in sorted({work.units for work in works}):
        of_size = sorted((work.rows, value(work)) for work in works if work.units == size)
        points.append((size, _line(of_size[0], of_size[-1], rows)))
    above = next((i for i, (size, _) in enumerate(points) if size >= units), len(points) - 1)
    if len(points) > 1:
        above = max(1, above)
    return max(0.0, _line(points[max(0, above - 1)], points[above], units))


def _line(low: tuple[int, float], high: tuple[int, float], at: int) -> float:
    """Through two points; through none and the one, where they are the same."""
    if low[0] == high[0]:
        return high[1] * at / high[0] if high[0] else high[1]
    return low[1] + (high[1] - low[1]) * (at - low[0]) / (high[0] - low[0])


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

"""Computes a half's memory besides its weights, for any size of batch.

A few dry runs on the meta device are fitted to give the cost of any size. Memory grows with rows
and tokens. Attention that is not fused grows with the square of the tokens, and a padded batch has
a mask of that size. The module imports no model library.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ITEM_BYTES = 2
"""Bytes per number in the dry runs."""
Kind = str
"""`image` or `video`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCost:
    """The cost of one dry run of a half. Bytes refer to 16-bit computation unless a field says
    otherwise; a quantized half also computes in 16 bit."""

    kind: str
    """`image` or `video`."""
    rows: int
    """Chunks in the batch."""
    units: int
    """Encoder: 32-bit numbers of pixel input per chunk. Decoder: tokens per prompt."""
    peak_bytes: int
    """Peak bytes besides the weights, inputs and outputs included. Decoder: the peak of prefill,
    KV cache included."""
    peak_bytes_32: int = 0
    """The same if the half computes in 32 bit."""
    kept_bytes: int
    """Bytes of the features (encoder), or of the KV cache after prefill (decoder)."""
    mlp_bytes: int = 0
    """Bytes of the peak that are inside an MLP; chunking its input saves a share of them. 0: the
    peak is elsewhere."""
    outside_bytes: int = 0
    """Peak bytes while no MLP computes."""
    outside_bytes_32: int = 0
    """The same if the half computes in 32 bit."""
    positions: int = 0
    """Positions that an MLP receives at once; 0: as many as units."""
    step_bytes: int = 0
    """Peak bytes of one decode step of every row, KV cache included (decoder)."""
    waiting_bytes: int = 0
    """Peak bytes at the start of a layer: what a waiting batch holds (encoder)."""
    waiting_bytes_32: int = 0
    """The same if the half computes in 32 bit."""
    scores_bytes: int = 0
    """Bytes of the scores of one attention if it were not fused: in 32 bit, with the values derived
    from them."""
    mask_bytes: int = 0
    """Bytes of two copies of one attention mask, at most."""
    flops: int
    """Floating-point operations of the encoder's pass, or of prefill."""
    step_flops: int = 0
    """Floating-point operations of one decode step of every row."""


class Size(NamedTuple):
    """A size of batch."""

    kind: Kind
    rows: int
    units: int
    """As in BatchCost."""


class FittedCosts:
    """Dry runs of a half, fitted to give the cost of any size; 0 without dry runs."""

    def __init__(self, costs: Sequence[BatchCost]) -> None:
        self._costs = costs

    def peak(
        self, size: Size, *, item_bytes: int = ITEM_BYTES, new_tokens: int = 0, mlp_chunk: int = 0
    ) -> int:
        """Return the peak bytes besides the weights.

        Inputs, outputs and KV cache are included. The half computes in numbers of `item_bytes`. A
        decoder writes `new_tokens`, and its MLPs process `mlp_chunk` positions at once (0: all)."""
        scale, wide = item_bytes / ITEM_BYTES, item_bytes > ITEM_BYTES
        # Costs known only in 16 bit are doubled for 32 bit.
        peak = self._at(
            size, lambda c: (c.peak_bytes_32 or 2 * c.peak_bytes) if wide else c.peak_bytes
        )
        positions = self._at(size, lambda c: c.positions) or size.rows * size.units
        if 0 < mlp_chunk < positions:
            inside = scale * self._at(size, lambda c: c.mlp_bytes)
            outside = self._at(size, lambda c: c.outside_bytes_32 if wide else c.outside_bytes)
            peak = max(peak - inside * (1 - mlp_chunk / positions), min(peak, outside))
        if new_tokens:
            longer = size._replace(units=size.units + new_tokens)
            peak = max(peak, scale * self._at(longer, lambda c: c.step_bytes))
        return max(0, round(peak))

    def kept(self, size: Size, item_bytes: int = ITEM_BYTES) -> int:
        """Return the bytes of the features (encoder), or of the KV cache with `units` tokens per
        row (decoder)."""
        return max(0, round(item_bytes / ITEM_BYTES * self._at(size, lambda c: c.kept_bytes)))

    def figure(self, size: Size, figure: Callable[[BatchCost], int]) -> int:
        """Return one figure of the dry runs, fitted for a size."""
        return max(0, round(self._at(size, figure)))

    def _at(self, size: Size, figure: Callable[[BatchCost], int]) -> float:
        """Return the fitted figure at a size, using the terms that the runs can distinguish. A
        negative growth term is dropped: it only shows that two runs peak at different places."""
        costs = [cost for cost in self._costs if cost.kind == size.kind] or list(self._costs)
        if not costs:
            return 0.0
        largest = max(costs, key=lambda cost: (cost.rows * cost.units, cost.rows))
        scales = [term(largest.rows, largest.units) or 1.0 for term in TERMS]
        terms = [
            [term(c.rows, c.units) / scale for term, scale in zip(TERMS, scales, strict=True)]
            for c in costs
        ]
        chosen: list[int] = []
        for index in range(len(TERMS)):
            if _rank([[row[i] for i in (*chosen, index)] for row in terms]) == len(chosen) + 1:
                chosen.append(index)
        # Relative errors count, so that small sizes are fitted as well as large ones.
        measures = [max(1.0, float(figure(cost))) for cost in costs]
        figures = [figure(c) / measure for c, measure in zip(costs, measures, strict=True)]
        while True:
            pairs = zip(terms, measures, strict=True)
            table = [[row[i] / measure for i in chosen] for row, measure in pairs]
            factors = _least_squares(table, figures)
            growing = [(f, i) for f, i in zip(factors, chosen, strict=True) if i in GROWING]
            worst = min(growing, default=(0.0, -1))
            if worst[0] >= 0:
                break
            chosen.remove(worst[1])
        return sum(
            factor * TERMS[i](size.rows, size.units) / scales[i]
            for factor, i in zip(factors, chosen, strict=True)
        )


TERMS: tuple[Callable[[int, int], float], ...] = (
    lambda rows, units: float(rows * units),
    lambda rows, units: 1.0,
    lambda rows, units: float(rows * units * units),
    lambda rows, units: float(rows),
    lambda rows, units: float(rows * units * units) if rows > 1 else 0.0,
)
GROWING = (0, 2, 3, 4)
"""Indexes of the terms that cannot be negative."""


def _rank(table: list[list[float]]) -> int:
    """Return the number of independent columns."""
    rows = [list(row) for row in table]
    rank = 0
    for column in range(len(rows[0])):
        pivot = max(rows[rank:], key=lambda row: abs(row[column]), default=None)
        if pivot is None or abs(pivot[column]) < 1e-6:
            continue
        rows.remove(pivot)
        rows.insert(rank, pivot)
        for row in rows[rank + 1 :]:
            factor = row[column] / pivot[column]
            row[:] = [a - factor * b for a, b in zip(row, pivot, strict=True)]
        rank += 1
    return rank


def _least_squares(table: list[list[float]], values: list[float]) -> list[float]:
    """Return the least-squares coefficients of the columns. The columns are independent."""
    width = len(table[0])
    normal = [
        [sum(row[i] * row[j] for row in table) for j in range(width)]
        + [sum(row[i] * value for row, value in zip(table, values, strict=True))]
        for i in range(width)
    ]
    for column in range(width):
        pivot = max(range(column, width), key=lambda i: abs(normal[i][column]))
        normal[column], normal[pivot] = normal[pivot], normal[column]
        for i in range(width):
            if i != column:
                factor = normal[i][column] / normal[column][column]
                pairs = zip(normal[i], normal[column], strict=True)
                normal[i] = [a - factor * b for a, b in pairs]
    return [normal[i][width] / normal[i][i] for i in range(width)]

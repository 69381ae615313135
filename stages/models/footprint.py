"""Fits a half's memory cost besides its weights from dry runs. Imports no model library.

A few runs on the meta device give the cost of any size. Memory grows with rows and tokens.
Attention that is not fused grows with the square of the tokens, and a padded batch has a mask of
that size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ITEM_BYTES = 2
"""Bytes of a number in which the runs were made."""
Kind = str
"""`image` or `video`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCost:
    """The cost of one dry run of a half. Bytes are those of 16-bit computation unless a field says
    otherwise; a quantized half computes in 16 bit, too."""

    kind: str
    """`image` or `video`."""
    rows: int
    """Chunks in the batch."""
    units: int
    """Numbers of pixel input a chunk, of 32 bit (encoder), or tokens that a prompt has
    (decoder)."""
    peak_bytes: int
    """Most bytes that live at one moment beside the weights; inputs and outputs included. Of the
    decoder: until the prompts are read, the KV cache included."""
    peak_bytes_32: int = 0
    """The same of a half that computes in 32 bit."""
    kept_bytes: int
    """Bytes of the features that are handed over (encoder), or of the KV cache after the prompt
    (decoder)."""
    mlp_bytes: int = 0
    """Bytes of the peak that are inside of an MLP, which takes as much less when it is given its
    input in pieces; 0 when the peak is elsewhere."""
    outside_bytes: int = 0
    """Most bytes that live while no MLP computes."""
    outside_bytes_32: int = 0
    """The same of a half that computes in 32 bit."""
    positions: int = 0
    """Positions that an MLP is given at once; 0: as many as there are units."""
    step_bytes: int = 0
    """Most bytes that live while one more token of every row is computed, the KV cache included
    (decoder)."""
    waiting_bytes: int = 0
    """Most bytes that live when a layer is about to begin: what a batch holds while it waits for
    one (encoder)."""
    waiting_bytes_32: int = 0
    """The same of a half that computes in 32 bit."""
    scores_bytes: int = 0
    """Most bytes that the scores of one attention would take, in 32 bit and with what is made of
    them, were it not fused."""
    mask_bytes: int = 0
    """Most bytes that two copies of one attention's mask take."""
    flops: int
    """Floating-point operations of the encoder's pass, or of reading the prompts."""
    step_flops: int = 0
    """Floating-point operations of one more token of every row."""


def peak_bytes(
    batch_costs: Sequence[BatchCost],
    *,
    kind: Kind,
    rows: int,
    units: int,
    item_bytes: int = ITEM_BYTES,
    new_tokens: int = 0,
    mlp_chunk: int = 0,
) -> int:
    """Return the most bytes that live at one moment beside the weights; 0 where nothing is known.
    Inputs, outputs and KV cache are included. A half computes in numbers of `item_bytes`; a decoder
    writes `new_tokens`, and its MLPs take `mlp_chunk` positions at once (0: all)."""
    scale, wide = item_bytes / ITEM_BYTES, item_bytes > ITEM_BYTES
    # Where a cost is a formula in 16 bit, all is taken to be twice as large.
    peak = _at(
        batch_costs,
        kind,
        rows,
        units,
        lambda w: (w.peak_bytes_32 or 2 * w.peak_bytes) if wide else w.peak_bytes,
    )
    positions = _at(batch_costs, kind, rows, units, lambda w: w.positions) or rows * units
    if 0 < mlp_chunk < positions:
        inside = scale * _at(batch_costs, kind, rows, units, lambda w: w.mlp_bytes)
        outside = _at(
            batch_costs,
            kind,
            rows,
            units,
            lambda w: w.outside_bytes_32 if wide else w.outside_bytes,
        )
        peak = max(peak - inside * (1 - mlp_chunk / positions), min(peak, outside))
    if new_tokens:
        step = _at(batch_costs, kind, rows, units + new_tokens, lambda w: w.step_bytes)
        peak = max(peak, scale * step)
    return max(0, round(peak))


def kept_bytes(
    batch_costs: Sequence[BatchCost],
    *,
    kind: Kind,
    rows: int,
    units: int,
    item_bytes: int = ITEM_BYTES,
) -> int:
    """Return the bytes of the features of so many rows, for the encoder. For the decoder: of its KV
    cache when each row has so many tokens."""
    found = _at(batch_costs, kind, rows, units, lambda w: w.kept_bytes)
    return max(0, round(item_bytes / ITEM_BYTES * found))


def waiting_bytes(
    batch_costs: Sequence[BatchCost],
    *,
    kind: Kind,
    rows: int,
    units: int,
    item_bytes: int = ITEM_BYTES,
) -> int:
    """Return the bytes that so many rows hold while they wait for a layer of the encoder."""

    wide = item_bytes > ITEM_BYTES
    held = _at(
        batch_costs, kind, rows, units, lambda w: w.waiting_bytes_32 if wide else w.waiting_bytes
    )
    return max(0, round(held))


def at_size(
    batch_costs: Sequence[BatchCost],
    each: Callable[[BatchCost], int],
    *,
    kind: Kind,
    rows: int,
    units: int,
) -> int:
    """Return one figure of a profile's runs, at a size."""
    return max(0, round(_at(batch_costs, kind, rows, units, each)))


def _at(
    batch_costs: Sequence[BatchCost],
    kind: Kind,
    rows: int,
    units: int,
    each: Callable[[BatchCost], int],
) -> float:
    """Return the value at a size, by the terms that the runs tell apart. A growth that is negative
    is an accident of two runs that have their peaks at different places, and is left out."""
    known = [work for work in batch_costs if work.kind == kind] or list(batch_costs)
    if not known:
        return 0.0
    largest = max(known, key=lambda work: (work.rows * work.units, work.rows))
    scales = [term(largest.rows, largest.units) or 1.0 for term in TERMS]
    chosen: list[int] = []
    for index in range(len(TERMS)):
        rank = [[TERMS[i](w.rows, w.units) / scales[i] for i in (*chosen, index)] for w in known]
        if _rank(rank) == len(chosen) + 1:
            chosen.append(index)
    while True:
        # Small sizes are to be as true as large ones, to their own measure.
        measures = [max(1.0, float(each(work))) for work in known]
        table = [
            [TERMS[i](w.rows, w.units) / scales[i] / measure for i in chosen]
            for w, measure in zip(known, measures, strict=True)
        ]
        values = [each(w) / measure for w, measure in zip(known, measures, strict=True)]
        found = _least_squares(table, values)
        growing = [(value, i) for value, i in zip(found, chosen, strict=True) if i in GROWING]
        worst = min(growing, default=(0.0, -1))
        if worst[0] >= 0:
            break
        chosen.remove(worst[1])
    return sum(v * TERMS[i](rows, units) / scales[i] for v, i in zip(found, chosen, strict=True))


TERMS: tuple[Callable[[int, int], float], ...] = (
    lambda rows, units: float(rows * units),
    lambda rows, units: 1.0,
    lambda rows, units: float(rows * units * units),
    lambda rows, units: float(rows),
    lambda rows, units: float(rows * units * units) if rows > 1 else 0.0,
)
GROWING = (0, 2, 3, 4)
"""Numbers of the terms that cannot shrink what is held."""


def _rank(table: list[list[float]]) -> int:
    """Return how many columns are independent."""
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
    """Return the coefficients of the columns that come nearest to the values. The columns are
    independent."""
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

"""Computes a half's memory besides its weights: the cost of any size, the KV cache, the context.

A few dry runs on the meta device are fitted to give the cost of any size. Memory grows with rows
and tokens. Attention that is not fused grows with the square of the tokens, and a padded batch has
a mask of that size.

The KV-cache memory of one row is computed layer by layer. A language half's context length in
tokens is read from the model's configuration. The module imports no model library.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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
    """Return the peak bytes besides the weights; 0 if no cost is known.

    Inputs, outputs and KV cache are included. The half computes in numbers of `item_bytes`. A
    decoder writes `new_tokens`, and its MLPs process `mlp_chunk` positions at once (0: all)."""
    scale, wide = item_bytes / ITEM_BYTES, item_bytes > ITEM_BYTES
    # Costs known only in 16 bit are doubled for 32 bit.
    fitted = partial(_at, batch_costs, kind, rows, units)
    peak = fitted(lambda w: (w.peak_bytes_32 or 2 * w.peak_bytes) if wide else w.peak_bytes)
    positions = fitted(lambda w: w.positions) or rows * units
    if 0 < mlp_chunk < positions:
        inside = scale * fitted(lambda w: w.mlp_bytes)
        outside = fitted(lambda w: w.outside_bytes_32 if wide else w.outside_bytes)
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
    """Return the bytes of the features of `rows` rows (encoder), or of their KV cache with `units`
    tokens per row (decoder)."""
    fitted = _at(batch_costs, kind, rows, units, lambda w: w.kept_bytes)
    return max(0, round(item_bytes / ITEM_BYTES * fitted))


def at_size(
    batch_costs: Sequence[BatchCost],
    figure: Callable[[BatchCost], int],
    *,
    kind: Kind,
    rows: int,
    units: int,
) -> int:
    """Return one figure of the dry runs, fitted for a size."""
    return max(0, round(_at(batch_costs, kind, rows, units, figure)))


def _at(
    batch_costs: Sequence[BatchCost],
    kind: Kind,
    rows: int,
    units: int,
    figure: Callable[[BatchCost], int],
) -> float:
    """Return the fitted value at a size, using the terms that the runs can distinguish. A negative
    growth term is dropped: it only shows that two runs peak at different places."""
    known = [work for work in batch_costs if work.kind == kind] or list(batch_costs)
    if not known:
        return 0.0
    largest = max(known, key=lambda work: (work.rows * work.units, work.rows))
    scales = [term(largest.rows, largest.units) or 1.0 for term in TERMS]
    terms = [
        [term(w.rows, w.units) / scale for term, scale in zip(TERMS, scales, strict=True)]
        for w in known
    ]
    chosen: list[int] = []
    for index in range(len(TERMS)):
        if _rank([[row[i] for i in (*chosen, index)] for row in terms]) == len(chosen) + 1:
            chosen.append(index)
    # Relative errors count, so that small sizes are fitted as well as large ones.
    measures = [max(1.0, float(figure(work))) for work in known]
    values = [figure(work) / measure for work, measure in zip(known, measures, strict=True)]
    while True:
        pairs = zip(terms, measures, strict=True)
        table = [[row[i] / measure for i in chosen] for row, measure in pairs]
        factors = _least_squares(table, values)
        growing = [(value, i) for value, i in zip(factors, chosen, strict=True) if i in GROWING]
        worst = min(growing, default=(0.0, -1))
        if worst[0] >= 0:
            break
        chosen.remove(worst[1])
    return sum(v * TERMS[i](rows, units) / scales[i] for v, i in zip(factors, chosen, strict=True))


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


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerMemory:
    """The cache of one row in layers of one kind. Bytes are for a half that computes in 16 bit."""

    kind: str
    """Name of the transformers cache-layer class."""
    layers: int = 1
    """Number of such layers."""
    token_bytes: int = 0
    """Bytes per cached token in one layer: keys and values."""
    window: int = 0
    """Maximum number of cached tokens; 0: all."""
    state_bytes: int = 0
    """Bytes per row that do not depend on its length."""
    state_bytes_32: int = 0
    """The same if the half computes in 32 bit."""

    def bytes(self, tokens: int, item_bytes: int) -> int:
        """Return the bytes that one layer uses for so many tokens, in numbers of `item_bytes`."""
        seen = min(tokens, self.window) if self.window else tokens
        return seen * self.token_bytes * item_bytes // ITEM_BYTES

    def states(self, item_bytes: int) -> int:
        """Return the bytes of its states, in numbers of `item_bytes`."""
        return self.state_bytes_32 if item_bytes > ITEM_BYTES else self.state_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class RowMemory:
    """The cache of one row, and the output per token."""

    kept: tuple[LayerMemory, ...]
    words: int
    """Vocabulary size: one logit per entry is computed for the next token."""

    def bytes(self, tokens: int, item_bytes: int) -> int:
        """Return the bytes that all layers use for so many tokens, without states."""
        return sum(kind.layers * kind.bytes(tokens, item_bytes) for kind in self.kept)

    def states(self, item_bytes: int) -> int:
        """Return the bytes of all states of a row."""
        return sum(kind.layers * kind.states(item_bytes) for kind in self.kept)

    @property
    def has_states(self) -> bool:
        """Return whether each row of a step has states, used or not. Such a model has few rows."""
        return any(kind.state_bytes or kind.state_bytes_32 for kind in self.kept)

    def largest(self, tokens: int, item_bytes: int) -> int:
        """Return the bytes of the layer that uses most for so many tokens."""
        return max((kind.bytes(tokens, item_bytes) for kind in self.kept), default=0)

    def largest_states(self, item_bytes: int) -> int:
        """Return the state bytes of the layer with the largest states."""
        return max((kind.states(item_bytes) for kind in self.kept), default=0)


NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""Names under which configurations state the context length in tokens."""
STRETCHED = ("linear", "dynamic", "yarn", "longrope")
"""RoPE scaling types whose `factor` multiplies the original context. `llama3` is not one of them:
there the configuration already states the scaled context."""
ORIGINAL = "original_max_position_embeddings"


def context_tokens(config: Any) -> int:
    """Return how many tokens a language half can hold, prompt and answer together, with its RoPE
    scaling; 0 if its configuration does not state it."""
    text = config.get_text_config(decoder=True)
    limits = (getattr(text, name, None) for name in NAMES)
    stated = next((value for value in limits if isinstance(value, int) and value > 0), 0)
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not stated or not isinstance(scaling, Mapping):
        return stated
    by_layer = [rope for rope in scaling.values() if isinstance(rope, Mapping)]
    # If layers have different limits, the smallest limit applies.
    return min(_scaled(stated, rope) for rope in by_layer or [scaling])


def _scaled(stated: int, scaling: Mapping[str, Any]) -> int:
    """Return the context of layers with this scaling when the configuration states `stated` tokens:
    either the value before scaling, or already the scaled one."""
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if kind not in STRETCHED or not isinstance(factor, int | float) or not math.isfinite(factor):
        return stated
    original = scaling.get(ORIGINAL)
    trained = original if isinstance(original, int) and original > 0 else stated
    return max(stated, math.floor(trained * factor))

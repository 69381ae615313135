"""Estimates the memory and operations of a stage on a rung, from a model profile. Imports no model
library.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from flows.core.plan.ladder import Rung
from flows.core.plan.workloads import Workload
from stages.models.footprint import (
    ITEM_BYTES,
    BatchCost,
    at_size,
    kept_bytes,
    peak_bytes,
)
from stages.models.profile import ModelProfile, PartProfile

Purpose = Literal["weight", "activation", "kv", "workspace", "context", "host"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One number of an estimate, with its origin."""

    part: Purpose
    bytes: int
    why: str
    """The arithmetic in one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimate:
    """Expected peak memory of one stage process on one rung, in bytes, above the memory of its
    imports."""

    rung: Rung
    terms: tuple[Term, ...]
    """The terms that add up to the estimate."""
    device: str
    """`cpu` or `cuda:N`: where the process computes."""
    workload: Workload
    """The workload with the highest peak."""
    flops: float = 0
    """Operations for all chunks, counted at the largest size; 0: unknown."""
    by_dimensions: bool = False
    """Whether the estimate uses the half's dimensions instead of a dry run."""

    def bytes_of(self, part: Purpose) -> int:
        return sum(term.bytes for term in self.terms if term.part == part)

    @property
    def peak_bytes(self) -> int:
        """Return the peak bytes on the compute device."""
        return sum(term.bytes for term in self.terms if term.part != "host")

    @property
    def host_bytes(self) -> int:
        """Return the bytes of anonymous host memory; on a CPU, the peak itself."""
        return self.bytes_of("host") if self.device.startswith("cuda") else self.peak_bytes

    def plus(self, term: Term) -> "StageEstimate":
        return replace(self, terms=(*self.terms, term))

    def to_json(self) -> dict[str, Any]:
        """Return all fields but the terms, as JSON."""
        load = asdict(self.workload)
        if not load["stored_frames"]:
            del load["stored_frames"]
        return {
            "stage": self.rung.stage,
            "rung": asdict(self.rung),
            **{f"{part}_bytes": self.bytes_of(part) for part in get_args(Purpose)},
            "host_bytes": self.host_bytes,
            "peak_bytes": self.peak_bytes,
            "flops": self.flops,
            "by_dimensions": self.by_dimensions,
            "load": load,
        }


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
    each: int = ITEM_BYTES,
    new: int = 0,
    mlp_chunk: int = 0,
) -> Expected:
    """Return the costs of a batch of `rows` with `units` each. `each`: bytes per number. `new`:
    tokens that a decoder generates. `batch_costs` must not be empty."""
    peak = peak_bytes(
        batch_costs,
        kind=kind,
        rows=rows,
        units=units,
        item_bytes=each,
        new_tokens=new,
        mlp_chunk=mlp_chunk,
    )
    return Expected(
        peak_bytes=peak,
        kept_bytes=kept_bytes(
            batch_costs, kind=kind, rows=rows, units=units + new, item_bytes=each
        ),
        waiting_bytes=at_size(
            batch_costs,
            lambda w: w.waiting_bytes_32 if each > ITEM_BYTES else w.waiting_bytes,
            kind=kind,
            rows=rows,
            units=units,
        ),
        flops=at_size(batch_costs, lambda w: w.flops, kind=kind, rows=rows, units=units),
        step_flops=at_size(batch_costs, lambda w: w.step_flops, kind=kind, rows=rows, units=units),
        known=True,
    )


def encoder_by_dimensions(
    half: PartProfile, each: int, rows: int, units: int, kept: int
) -> Expected:
    """Return the costs of an encoder, assuming 12 x width² parameters per layer. `each`: bytes per
    number. `kept`: feature bytes per row."""
    width = math.sqrt(half.layer_parameters / 12)
    tokens = rows * units / PATCH_NUMBERS
    return Expected(
        peak_bytes=each * (tokens * width * ENCODER_ROWS + rows * units) + rows * kept,
        kept_bytes=rows * kept,
        waiting_bytes=each * (2 * tokens * width + rows * units),
        flops=2 * half.parameters * tokens,
        step_flops=0,
        known=False,
    )


def decoder_by_dimensions(
    profile: ModelProfile, each: int, rows: int, tokens: int, *, new: int = 0, mlp_chunk: int = 0
) -> Expected:
    """Return the costs of a decoder, assuming its feature width and a full-width KV cache."""
    half, width = profile.language, profile.feature_width
    inside = max(width, (half.layer_parameters - 4 * width**2) / (3 * width))
    outside = half.outside_parameters
    stack, vocabulary = half.parameters - outside, outside / width
    cache = 2 * half.layers * width * each * rows
    at_once = min(tokens * rows, mlp_chunk or tokens * rows)
    reading = (tokens * rows * DECODER_ROWS * width + at_once * 2 * inside) * each
    logits = rows * vocabulary * 4
    return Expected(
        peak_bytes=max(cache * tokens + reading, cache * (tokens + new)) + logits,
        kept_bytes=cache * (tokens + new),
        waiting_bytes=0,
        flops=2 * stack * tokens * rows,
        step_flops=2 * half.parameters * rows,
        known=False,
    )

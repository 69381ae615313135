"""Estimates the memory and time of a stage on a rung, from a model profile. Imports no model
library.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from flows.planning.rungs import Rung
from flows.planning.workloads import Workload
from stages.models.footprint import (
    ITEM_BYTES,
    BatchCost,
    at_size,
    kept_bytes,
    peak_bytes,
    waiting_bytes,
)
from stages.models.profile import ModelProfile, PartProfile

Purpose = Literal["weight", "activation", "kv", "workspace", "context", "host"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One number of an estimate, with its origin."""

    part: Purpose
    bytes: int
    why: str
    """One line: what is multiplied by what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimate:
    """Expected peak memory of one stage process on one rung, in bytes, above the memory of its
    imports."""

    rung: Rung
    weight_bytes: int
    activation_bytes: int
    """Bytes live at once at the worst moment, inputs and outputs included, KV cache not."""
    kv_bytes: int
    workspace_bytes: int
    """Scratch of the libraries, what is prefetched, and what the allocator holds back."""
    context_bytes: int
    """Bytes that a GPU's driver takes for a process that uses it."""
    host_bytes: int
    """Anonymous memory of the host; of a CPU the peak itself."""
    flops: float = 0
    """Operations for the chunks of the job's largest size, one after another; 0: unknown."""
    workload: Workload | None = None
    """The worst of the job's chunks."""
    by_dimensions: bool = False
    """Whether it rests on the half's dimensions alone, and not on a dry run."""
    terms: tuple[Term, ...] = ()
    """The arithmetic."""

    @property
    def peak_bytes(self) -> int:
        """Return the peak of the device."""
        return (
            self.weight_bytes
            + self.activation_bytes
            + self.kv_bytes
            + self.workspace_bytes
            + self.context_bytes
        )

    @classmethod
    def of(
        cls,
        rung: Rung,
        terms: Sequence[Term],
        *,
        device: str,
        workload: Workload,
        flops: float = 0,
        by_dimensions: bool = False,
    ) -> "StageEstimate":
        """Add up the terms."""

        sums = {
            f"{part}_bytes": sum(term.bytes for term in terms if term.part == part)
            for part in get_args(Purpose)
        }
        host = sums.pop("host_bytes")
        return cls(
            rung=rung,
            host_bytes=host if device.startswith("cuda") else sum(sums.values()),
            terms=tuple(terms),
            workload=workload,
            flops=flops,
            by_dimensions=by_dimensions,
            **sums,
        )

    def plus(self, term: Term, device: str) -> "StageEstimate":
        """Return the same with one term more."""
        assert self.workload is not None
        return StageEstimate.of(
            self.rung,
            [*self.terms, term],
            device=device,
            workload=self.workload,
            flops=self.flops,
            by_dimensions=self.by_dimensions,
        )

    def to_json(self) -> dict[str, Any]:
        """Return all but the arithmetic."""
        load = None if self.workload is None else asdict(self.workload)
        if load and not load["stored_frames"]:
            del load["stored_frames"]
        return {
            "stage": self.rung.stage,
            "rung": self.rung.to_json(),
            **{name: getattr(self, name) for name in self.__slots__ if name.endswith("_bytes")},
            "peak_bytes": self.peak_bytes,
            "flops": self.flops,
            "by_dimensions": self.by_dimensions,
            "load": load,
        }


PATCH_NUMBERS = 3 * 14 * 14
"""Pixel numbers that one token of an encoder is assumed to be made of: a patch of 14 by 14."""
ENCODER_ROWS = 10
"""Rows of its width that an encoder is assumed to hold a token: 4 of the MLP, 4 of attention, and 2
of what goes on."""
DECODER_ROWS = 3
"""The same of a decoder, beside two of its MLP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """The expected costs of one batch."""

    peak_bytes: float
    """Bytes that live at one moment beside the weights; what is handed over, or the KV cache,
    included."""
    kept_bytes: float
    """Bytes of the features, or of the KV cache when the last token is written."""
    waiting_bytes: float
    """Bytes that are held in encoding while a batch waits for a layer."""
    flops: float
    """Operations of encoding, or of reading the prompts."""
    step_flops: float
    known: bool
    """Whether dry runs told it, and not dimensions."""


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
    """Return the costs of so many rows of so many units, in numbers of `each` bytes. A decoder then
    writes `new` tokens. `batch_costs` must not be empty."""
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
        waiting_bytes=waiting_bytes(
            batch_costs, kind=kind, rows=rows, units=units, item_bytes=each
        ),
        flops=at_size(batch_costs, lambda w: w.flops, kind=kind, rows=rows, units=units),
        step_flops=at_size(batch_costs, lambda w: w.step_flops, kind=kind, rows=rows, units=units),
        known=True,
    )


def encoder_by_dimensions(
    half: PartProfile, each: int, rows: int, units: int, kept: int
) -> Expected:
    """Return the costs of an encoder whose layers are assumed to hold 12 times their width squared.
    `each` are the bytes of a number, `kept` those of the features of a row."""
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
    """Return the costs of a decoder as wide as its features, with a KV cache of its full width."""
    half, width = profile.language, profile.feature_width
    inside = max(width, (half.layer_parameters - 4 * width**2) / (3 * width))
    stack = half.layers * half.layer_parameters
    vocabulary = max(0, half.parameters - stack) / width
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

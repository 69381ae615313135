"""The cases of the benchmark of plans, which stage runs on which model and on which rung, and the
table that is printed of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks._common import MIB, cells, heads

HEADS = "model | stage | precision | batch | frames | planned MiB | measured MiB | error"


@dataclass(frozen=True, slots=True)
class Case:
    """One stage on one rung."""

    shape: str
    stage: Literal["encode", "decode", "tune"]
    precision: str
    batch: int
    frames: int
    """Of each chunk."""
    words: int = 8
    """Of the prompt."""
    block: int = 0
    """Chunks past which layers are streamed."""
    prefill: int = 0
    """Positions that go through an MLP at once."""
    slots: bool = False
    """Whether the batch is of slots."""
    new: int = 12
    """Most tokens of a caption."""
    rank: int = 0
    """Rank of the adapter that is trained; 0: none is."""
    recompute: bool = False
    """Whether layers are computed again for the backward pass."""
    optimizer: str = "adamw"

    @property
    def caption(self) -> str:
        """Return what is learned, a token a letter."""
        return "c" * (self.new - 1)

    @property
    def prompt(self) -> str:
        return "describe " * self.words


CASES = (
    Case("llava", "decode", "bf16", 2, 2),
    Case("llava", "encode", "bf16", 6, 4),
    Case("llava", "decode", "fp32", 2, 2),
    Case("llava", "decode", "nf4", 4, 2),
    Case("llava", "encode", "fp32", 3, 4),
    Case("qwen2.5-vl", "encode", "bf16", 4, 8),
    Case("qwen2.5-vl", "decode", "bf16", 4, 4),
    Case("mllama", "decode", "bf16", 2, 1),
    Case("llava", "decode", "int8", 4, 2),
    Case("smolvlm", "encode", "fp32", 1, 8),
    Case("smolvlm", "decode", "fp32", 4, 8),
    Case("llava", "encode", "int8", 6, 4),
    Case("qwen2.5-vl", "encode", "fp32", 3, 8),
    Case("qwen2.5-vl", "decode", "nf4", 4, 4),
    Case("smolvlm", "encode", "bf16", 2, 8),
    Case("smolvlm", "decode", "int8", 4, 8),
    Case("mllama", "decode", "nf4", 2, 1),
    Case("llava", "encode", "bf16", 6, 4, block=12),
    Case("qwen2.5-vl", "encode", "fp32", 3, 8, block=6),
    Case("smolvlm", "encode", "fp32", 2, 8, block=4),
    Case("llava", "encode", "bf16", 6, 4, prefill=256),
    Case("smolvlm", "encode", "fp32", 1, 8, prefill=256),
    Case("llava", "decode", "bf16", 2, 2, prefill=256),
    Case("llava", "decode", "bf16", 1, 2, slots=True),
    Case("llava", "decode", "fp32", 2, 2, slots=True),
    Case("llava", "decode", "bf16", 3, 2, new=100, slots=True),
    Case("qwen2.5-vl", "decode", "bf16", 4, 4, slots=True),
    Case("smolvlm", "decode", "fp32", 4, 8, slots=True),
    Case("gemma3", "decode", "bf16", 8, 4, slots=True),
    Case("qwen3.5", "decode", "fp32", 4, 4, slots=True),
    *(
        Case(shape, "decode", kind, 8, frames, slots=True)
        for shape, frames in (("llava", 2), ("qwen2.5-vl", 4), ("smolvlm", 8))
        for kind in ("gguf-f32", "gguf-q8_0", "gguf-q4_0")
    ),
    Case("llava", "tune", "fp32", 2, 2, rank=16),
    Case("llava", "tune", "bf16", 2, 2, rank=16),
    Case("llava", "tune", "nf4", 1, 2, rank=16),
    Case("llava", "tune", "fp32", 2, 2, rank=64),
    Case("llava", "tune", "fp32", 2, 2, rank=16, recompute=True),
    Case("llava", "tune", "fp32", 1, 1, rank=16, new=400),
    Case("qwen2.5-vl", "tune", "fp32", 4, 4, rank=16),
    Case("qwen2.5-vl", "tune", "bf16", 2, 4, rank=16),
    Case("smolvlm", "tune", "fp32", 4, 8, rank=8),
    Case("smolvlm", "tune", "bf16", 2, 8, rank=16, recompute=True, optimizer="adamw8bit"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A case with both numbers."""

    case: Case
    planned: int
    measured: int
    """Bytes."""
    seconds: float

    @property
    def error(self) -> float:
        return self.planned / self.measured - 1


def _training(case: Case) -> str:
    """Return how a table row describes a training case; empty for other cases."""
    if not case.rank:
        return ""
    again = ", computed again" if case.recompute else ""
    return f", rank {case.rank}, {case.new} tokens{again}, {case.optimizer}"


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown."""
    lines = [heads(HEADS)]
    for row in rows:
        case = row.case
        ways = {"streamed": case.block, "in pieces": case.prefill, "in slots": case.slots}
        stage = ", ".join([case.stage, *(way for way, taken in ways.items() if taken)])
        told = (case.shape, stage + _training(case), case.precision, case.batch, case.frames)
        sizes = (f"{row.planned / MIB:,.0f}", f"{row.measured / MIB:,.0f}", f"{row.error:+.1%}")
        lines.append(cells([*told, *sizes]))
    worst = max(rows, key=lambda row: abs(row.error))
    small = sum(row.measured < 500e6 for row in rows)
    lines.append(f"\nworst {worst.error:+.1%} of {len(rows)} cases, {small} of them below 500 MB")
    return lines

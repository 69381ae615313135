"""The cases of the benchmark of plans: which stage runs on which model, and on which rung."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
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
    Case(shape="llava", stage="decode", precision="bf16", batch=2, frames=2),
    Case(shape="llava", stage="encode", precision="bf16", batch=6, frames=4),
    Case(shape="llava", stage="decode", precision="fp32", batch=2, frames=2),
    Case(shape="llava", stage="decode", precision="nf4", batch=4, frames=2),
    Case(shape="llava", stage="encode", precision="fp32", batch=3, frames=4),
    Case(shape="qwen2.5-vl", stage="encode", precision="bf16", batch=4, frames=8),
    Case(shape="qwen2.5-vl", stage="decode", precision="bf16", batch=4, frames=4),
    Case(shape="mllama", stage="decode", precision="bf16", batch=2, frames=1),
    Case(shape="llava", stage="decode", precision="int8", batch=4, frames=2),
    Case(shape="smolvlm", stage="encode", precision="fp32", batch=1, frames=8),
    Case(shape="smolvlm", stage="decode", precision="fp32", batch=4, frames=8),
    Case(shape="llava", stage="encode", precision="int8", batch=6, frames=4),
    Case(shape="qwen2.5-vl", stage="encode", precision="fp32", batch=3, frames=8),
    Case(shape="qwen2.5-vl", stage="decode", precision="nf4", batch=4, frames=4),
    Case(shape="smolvlm", stage="encode", precision="bf16", batch=2, frames=8),
    Case(shape="smolvlm", stage="decode", precision="int8", batch=4, frames=8),
    Case(shape="mllama", stage="decode", precision="nf4", batch=2, frames=1),
    Case(shape="llava", stage="encode", precision="bf16", batch=6, frames=4, block=12),
    Case(shape="qwen2.5-vl", stage="encode", precision="fp32", batch=3, frames=8, block=6),
    Case(shape="smolvlm", stage="encode", precision="fp32", batch=2, frames=8, block=4),
    Case(shape="llava", stage="encode", precision="bf16", batch=6, frames=4, prefill=256),
    Case(shape="smolvlm", stage="encode", precision="fp32", batch=1, frames=8, prefill=256),
    Case(shape="llava", stage="decode", precision="bf16", batch=2, frames=2, prefill=256),
    Case(shape="llava", stage="decode", precision="bf16", batch=1, frames=2, slots=True),
    Case(shape="llava", stage="decode", precision="fp32", batch=2, frames=2, slots=True),
    Case(shape="llava", stage="decode", precision="bf16", batch=3, frames=2, new=100, slots=True),
    Case(shape="qwen2.5-vl", stage="decode", precision="bf16", batch=4, frames=4, slots=True),
    Case(shape="smolvlm", stage="decode", precision="fp32", batch=4, frames=8, slots=True),
    Case(shape="gemma3", stage="decode", precision="bf16", batch=8, frames=4, slots=True),
    Case(shape="qwen3.5", stage="decode", precision="fp32", batch=4, frames=4, slots=True),
    Case(shape="llava", stage="tune", precision="fp32", batch=2, frames=2, rank=16),
    Case(shape="llava", stage="tune", precision="bf16", batch=2, frames=2, rank=16),
    Case(shape="llava", stage="tune", precision="nf4", batch=1, frames=2, rank=16),
    Case(shape="llava", stage="tune", precision="fp32", batch=2, frames=2, rank=64),
    Case(shape="llava", stage="tune", precision="fp32", batch=2, frames=2, rank=16, recompute=True),
    Case(shape="llava", stage="tune", precision="fp32", batch=1, frames=1, rank=16, new=400),
    Case(shape="qwen2.5-vl", stage="tune", precision="fp32", batch=4, frames=4, rank=16),
    Case(shape="qwen2.5-vl", stage="tune", precision="bf16", batch=2, frames=4, rank=16),
    Case(shape="smolvlm", stage="tune", precision="fp32", batch=4, frames=8, rank=8),
    Case(
        shape="smolvlm",
        stage="tune",
        precision="bf16",
        batch=2,
        frames=8,
        rank=16,
        recompute=True,
        optimizer="adamw8bit",
    ),
)

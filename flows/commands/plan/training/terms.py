"""Values of a fine-tuning plan: its settings, its memory terms, and the bytes per parameter of each
optimizer.
"""

from dataclasses import dataclass
from typing import Literal

Method = Literal["full", "lora", "qlora"]
Moment = Literal["always", "vision", "backward", "step"]
ZERO = "Rajbhandari et al. 2020, ZeRO (arXiv:1910.02054)"
LORA = "Hu et al. 2021, LoRA (arXiv:2106.09685)"
EIGHT_BIT = "Dettmers et al. 2021, 8-bit Optimizers (arXiv:2110.02861)"


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Bytes per trained parameter."""

    weight: int
    gradient: int
    optimizer: float
    keeps: str
    """The numbers that the optimizer keeps, as text."""
    step: int = 0
    """Additional bytes during a step."""
    source: str = ZERO


OPTIMIZERS = {
    "mixed": States(
        weight=2, gradient=2, optimizer=12, keeps="a master copy and AdamW's two moments in 32 bit"
    ),
    "bf16": States(
        weight=2,
        gradient=2,
        optimizer=4,
        keeps="AdamW's two moments in 16 bit, no master copy",
        step=2,
        source="torch.optim.AdamW, whose moments have the weights' dtype",
    ),
    "8bit": States(
        weight=2,
        gradient=2,
        optimizer=2 + 2 * 4 / 256,
        keeps="AdamW's two moments in 8 bit, a scale of 32 bits for 256 of each, no master copy",
        source=EIGHT_BIT,
    ),
}
ADAPTER = States(
    weight=4, gradient=4, optimizer=8, keeps="AdamW's two moments in 32 bit", source=LORA
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The settings of a fine-tuning run."""

    method: Method
    checkpointing: bool = False
    """Whether each layer keeps only its input and is recomputed (full recomputation)."""
    zero: int = 0
    gpus: int = 1
    batch: int = 1
    """Samples per GPU and pass; gradients of several passes are added in place."""
    length: int = 2048
    """Tokens per sample, image placeholders included."""
    frames: int = 1
    """Images per sample."""
    optimizer: str = "mixed"
    """Key of `OPTIMIZERS`, used with `full`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTerm:
    """One memory term of a training run."""

    part: str
    bytes: int
    why: str
    source: str = ""
    moment: Moment = "always"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainEstimate:
    """The memory that one GPU needs."""

    terms: tuple[TrainTerm, ...]
    trained: int
    frozen: int
    notes: tuple[str, ...]

    def bytes_at(self, moment: Moment) -> int:
        return sum(term.bytes for term in self.terms if term.moment == moment)

    @property
    def moment(self) -> Moment:
        """Return the moment with the highest memory use."""
        moments: tuple[Moment, ...] = ("backward", "step", "vision")
        return max(moments, key=self.bytes_at)

    @property
    def peak_bytes(self) -> int:
        """Return the permanent bytes plus those of the worst moment."""
        return self.bytes_at("always") + self.bytes_at(self.moment)

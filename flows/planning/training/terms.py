"""How a model would be fine-tuned, and what that takes, number by number; knows no model."""

from dataclasses import dataclass
from typing import Literal

Method = Literal["full", "lora", "qlora"]
Moment = Literal["always", "vision", "backward", "step"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How a model would be fine-tuned."""

    method: Method
    checkpointing: bool = False
    """Whether each layer keeps its input only and is computed again (full recomputation)."""
    zero: int = 0
    gpus: int = 1
    batch: int = 1
    """Samples a GPU and pass; gradients of several passes are added in place."""
    length: int = 2048
    """Tokens of a sample, the places of its pictures among them."""
    frames: int = 1
    """Pictures a sample."""
    optimizer: str = "mixed"
    """Of `OPTIMIZERS`; of all that is trained with `full`."""
    fused: bool = True
    """Whether attention keeps no scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTerm:
    """One number of what training takes."""

    part: str
    bytes: int
    why: str
    source: str = ""
    moment: Moment = "always"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainEstimate:
    """What one GPU needs."""

    terms: tuple[TrainTerm, ...]
    trained: int
    """Parameters that are trained."""
    frozen: int
    notes: tuple[str, ...]

    def of(self, moment: Moment) -> int:
        return sum(term.bytes for term in self.terms if term.moment == moment)

    @property
    def moment(self) -> Moment:
        """When it is the most."""
        moments: tuple[Moment, ...] = ("backward", "step", "vision")
        return max(moments, key=self.of)

    @property
    def peak_bytes(self) -> int:
        """What is always there, and the worst of what is not."""
        return self.of("always") + self.of(self.moment)

"""Estimates what a stage takes on a rung: arithmetic on a model's profile, no model library."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from flows.planning.rungs import Rung
from flows.planning.workloads import Workload

Purpose = Literal["weight", "activation", "kv", "workspace", "context", "host"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One number of an estimate and where it comes from."""

    part: Purpose
    bytes: int
    why: str
    """One line: what is multiplied by what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimate:
    """Expected peak of one stage process on one rung, in bytes, above what its imports take."""

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

"""What a stage is estimated to need: terms in bytes, and their sum."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Literal

from flows.core.job.plan_record import PlannedStage
from flows.core.plan.ladder import Rung
from flows.core.plan.workloads import Workload
from stages.process.device_limit import CONTEXT_BYTES

Purpose = Literal["weight", "activation", "kv", "workspace", "context", "host"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """Where a stage runs, and the limits and settings that its memory depends on."""

    device: str
    """`cpu` or `cuda:N`."""
    new_tokens: int
    """Most tokens that are generated for a chunk."""
    context_bytes: int = CONTEXT_BYTES
    """Bytes that a GPU's driver takes per process."""
    schema: bool = False
    """Whether captions follow a schema, whose grammar takes memory."""
    selection: Collection[str] = ()
    """Settings with which tokens are selected."""
    readers: int = 1
    """Processes that prepare frames for a stage that encodes them."""


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

    def planned(self, *, fits: bool) -> PlannedStage:
        """Return all fields but the terms, for records."""
        load = asdict(self.workload)
        if not load["stored_frames"]:
            del load["stored_frames"]
        return PlannedStage(
            stage=self.rung.stage,
            rung=asdict(self.rung),
            weight_bytes=self.bytes_of("weight"),
            activation_bytes=self.bytes_of("activation"),
            kv_bytes=self.bytes_of("kv"),
            workspace_bytes=self.bytes_of("workspace"),
            context_bytes=self.bytes_of("context"),
            host_bytes=self.host_bytes,
            peak_bytes=self.peak_bytes,
            flops=self.flops,
            by_dimensions=self.by_dimensions,
            load=load,
            fits=fits,
            name=self.rung.name,
        )

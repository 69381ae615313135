"""How much memory a run may take: what `--memory` says, or what the machine has free."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What the stages of a run may take, in bytes."""

    device: str
    """`cpu` or `cuda:N`."""
    bytes: int
    """Of the device, a stage, above what its imports take; of a GPU with the driver's context."""
    given: bool
    """Whether `--memory` said so."""
    free_bytes: int
    """Of the device, when it was looked at."""
    total_bytes: int
    host_bytes: int
    """Of the host: free memory of the machine or of the cgroup, whichever is less."""
    others: dict[str, int] = field(default_factory=dict)
    """Other processes that hold memory of the device: `process 4711 (python)` → bytes."""

"""What a stage is expected to take on a rung: arithmetic on a model's card, no model library."""

from dataclasses import dataclass

from flows.memory.rungs import Rung


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimate:
    """Expected peak of one stage process on one rung, in bytes, above what its imports take."""

    rung: Rung
    weight_bytes: int
    activation_bytes: int
    """Live at once at the worst moment, inputs and outputs included, KV cache not."""
    kv_bytes: int
    workspace_bytes: int
    """Scratch of the libraries, and what the allocator holds back."""
    context_bytes: int
    """Of a GPU: what the driver takes for a process that uses it."""
    host_bytes: int
    """Anonymous memory of the host; of a CPU the peak itself."""

    @property
    def peak_bytes(self) -> int:
        """Of the device."""
        return (
            self.weight_bytes
            + self.activation_bytes
            + self.kv_bytes
            + self.workspace_bytes
            + self.context_bytes
        )

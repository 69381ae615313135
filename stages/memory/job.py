"""The job description of measuring a machine. Imports no library."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureJob:
    """What to measure, and for how long."""

    device: str
    """`cpu` or `cuda:N`."""
    folder: str
    """Folder on the disk to measure: the store."""
    seconds: float
    """Time limit; later benchmarks are skipped."""
    companion: str
    """Computing precision of quantized weights."""

"""The result of one stage process."""

from dataclasses import dataclass, field
from typing import Any

from stages.process.events import Failed, StageError, TooLarge


@dataclass(kw_only=True, slots=True)
class StageOutcome:
    """The result of one stage process, as `run.json` records it."""

    name: str
    items: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_host_bytes: int = 0
    peak_device_bytes: int = 0
    baseline_before_bytes: int = 0
    baseline_after_bytes: int = 0
    timeline: list[Any] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failures: list[Failed] = field(default_factory=list)
    error: StageError | None = None
    too_large: list[TooLarge] = field(default_factory=list)
    open_media: set[str] = field(default_factory=set)
    """Media, by content digest, that were open when the process ended."""

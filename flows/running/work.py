"""What one process of a stage is to do; runs nothing."""

from dataclasses import dataclass

from flows.job.tasks import Task
from flows.planning.rungs import Rung


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one process of a stage is to do."""

    rung: Rung
    tasks: list[Task]
    """Of the wave, all that are made in the same way, done or not."""
    batches: list[list[Task]]
    total: int
    """Items of the wave."""
    missing: int
    """Those that are not there yet."""
    tokens: int = 0
    """Of the longest prompt, about."""

"""Declares the cost of a stage: two functions."""

from collections.abc import Callable
from dataclasses import dataclass

from flows.core.checkpoint.models import Model
from flows.core.options.commands import RunOptions
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Conditions, StageEstimate
from flows.core.plan.workloads import Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost functions of a stage."""

    rungs: Callable[[Model, RunOptions, str, str], list[Rung]]
    """Model, command, device and stage → rungs, cheapest first."""
    memory: Callable[[Model, Rung, Workload, Conditions], StageEstimate]
    """Model, rung, workload and conditions → memory estimate."""

"""Says what the memory of a planned run is expected to hold: processes, batches, stages at the same
time, and what would help a stage that did not fit after all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flows.core.console.lines import gib
from flows.core.job.prepare import Job
from flows.core.machine.budget import Budget
from flows.core.pipelines import STAGES
from flows.core.plan.changes import NAMED, changes
from flows.core.plan.choose import PlanRequest, StagePlan, fits, stage_plans
from flows.core.plan.ladder import Rung, sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What the memory of a run is expected to hold; without workloads, one process of a stage."""

    request: PlanRequest
    budget: Budget
    gpus: int = 1
    """Number of equal GPUs."""

    @property
    def sequence_tokens(self) -> int:
        """Return the planned tokens of the longest sequence, prompt and caption."""
        prompt = max((workload.tokens for workload in self.request.workloads), default=0)
        return prompt + self.request.config.groups.engine.max_new_tokens

    def processes(self, rung: Rung) -> int:
        """Return on how many of the GPUs a stage runs: at least on one, and on no more than the
        host's memory holds the processes of."""
        if self.gpus == 1 or not STAGES[rung.stage].fans_out or not self.request.workloads:
            return 1
        needed = self.request.estimate(rung).host_bytes
        return max(1, min(self.gpus, self.budget.host_bytes // needed)) if needed else self.gpus

    def processes_note(self, rungs: Sequence[Rung]) -> str:
        """Return why stages run on fewer GPUs than there are; empty if none does."""
        processes = {rung.stage: self.processes(rung) for rung in rungs}
        fewer = {s: n for s, n in processes.items() if STAGES[s].fans_out and n < self.gpus}
        if not fewer:
            return ""
        parts = " and ".join(f"{stage} runs on {count}" for stage, count in fewer.items())
        return (
            f"{parts} of {self.gpus} GPUs: the host's memory ({gib(self.budget.host_bytes)} free) "
            "holds no more processes"
        )

    def fit_together(self, rungs: Sequence[Rung]) -> Mapping[str, int]:
        """Return stage → bytes of the device that it may take while all of them run: its peak and
        an equal part of what is left. Return nothing if they are not expected to fit together, with
        one process per GPU of stages that have such."""
        budget = self.budget
        estimates = [self.request.estimate(r) for r in rungs] if self.request.workloads else []
        room = budget.bytes if budget.device == "cpu" else budget.host_bytes
        needed = sum(
            (e.host_bytes or e.peak_bytes) * (self.gpus if STAGES[e.rung.stage].fans_out else 1)
            for e in estimates
        )
        peaks = {e.rung.stage: e.peak_bytes for e in estimates if STAGES[e.rung.stage].part}
        spare = budget.bytes - sum(peaks.values())
        if needed > room or spare < 0 or not all(fits(estimate, budget) for estimate in estimates):
            return {}
        return {stage: peak + spare // len(peaks) for stage, peak in peaks.items()}

    def batch_without_slots(self, rung: Rung) -> int:
        """Return the batch size for a rung with slots, if the engine check finds no slot support.

        It is the largest that is expected to fit, at most the number of slots and the requested
        size, and at least 1.
        """
        if not (rung.in_slots and self.request.workloads):
            return rung.batch
        plain = replace(rung, in_slots=False)
        largest = min(rung.batch, self.request.config.batch_size)
        batches = (replace(plain, batch=size) for size in sizes(largest))
        fitting = (b.batch for b in batches if fits(self.request.estimate(b), self.budget))
        return next(fitting, 1)

    def advice(self, stage: str) -> str:
        """Return options that would make a stage fit that ran out of memory despite its estimate;
        empty: none are known."""
        if not self.request.workloads:
            return ""
        request = replace(self.request, stages=(STAGES[stage],))
        smallest = stage_plans(request, request.rungs, self.budget)[stage].chosen
        # It used more than estimated, so a change must lower the estimate.
        budget = replace(self.budget, bytes=min(self.budget.bytes, smallest.peak_bytes - 1))
        unfit = StagePlan(requested=smallest, chosen=smallest, fits=False, refused=True)
        options = [change.option for change in changes(request, unfit, budget)]
        options = [option for option in options if not option.startswith("--memory")][:NAMED]
        part, config = STAGES[stage].part, request.config
        name = config.precision_field(part)
        if part and name and not config.may_fall_back(part):
            options.append(f"--{name.replace('_', '-')} auto, which falls back by itself")
        return ", or ".join([*options, "more with --memory"])


def unplanned(job: Job) -> Capacity:
    """Return the capacity of a job before its work is planned."""
    request = PlanRequest(model=job.model, config=job.config, device=job.device, workloads=())
    return Capacity(request=request, budget=job.budget)

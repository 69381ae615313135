"""Selects the rung that each stage of a job starts on, and what fits at the same time.

How it selects a rung:

1. For each stage, rungs are tried in order, cheapest first. The peak memory of the largest chunks
   is estimated on each rung.
2. The first rung within the budget is selected.
3. If there is none, the first rung on which the job's smallest chunk fits is selected. The run then
   tries larger chunks alone.
4. If not even that fits, the rung with the lowest peak is selected. The stage is refused if the
   certain part of its estimate for the smallest chunk (`CERTAIN_SHARE`) exceeds the budget.
5. A rung on which an earlier run found the stage to fit is used without an estimate.

`Capacity` says what fits at the same time: the processes of a stage on several GPUs, and several
stages on one device. The module starts no process and loads no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from artifacts.records.store import open_store
from flows.core.checkpoint.frame_room import frame_bound
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.prompt_tokens import max_prompt_tokens
from flows.core.console.lines import gib
from flows.core.job.plan_record import MemoryPlan
from flows.core.job.prepare import Job
from flows.core.ledger.prompts import prompt_for
from flows.core.machine.budget import Budget, context_bytes
from flows.core.options.commands import RunOptions
from flows.core.pipelines import CAPTION, STAGES, Pipeline
from flows.core.plan import costs
from flows.core.plan.costs.encode import recordings_term
from flows.core.plan.ladder import Rung, sizes
from flows.core.plan.sizes import Estimate, estimates
from flows.core.plan.stage_estimate import Conditions, StageEstimate
from flows.core.plan.workloads import Workload, smallest_workload, standard_workloads, workloads_of
from stages.decode.engines.slot_load import SCORE_BYTES
from stages.process.device_limit import CONTEXT_BYTES

CERTAIN_SHARE = 0.9
"""Share of the estimated computing memory that counts, next to the weights, when a stage is refused
on its last rung. It reflects the error of estimates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRequest:
    """The input of a selection: stages of a job, with their workloads."""

    model: Model
    config: RunOptions
    device: str
    workloads: tuple[Workload, ...]
    stages: Pipeline = CAPTION
    context_bytes: int = CONTEXT_BYTES
    """Bytes that a GPU's driver takes per process."""
    prompts: tuple[str, ...] = ()
    """Prompts of the run; only the shortest of several under one name."""
    smallest: Workload | None = None
    """The job's smallest chunk, if it differs."""
    any_request: bool = False
    """Whether each request may have its own schema and its own settings of token selection."""

    @property
    def rungs(self) -> dict[str, list[Rung]]:
        """Return stage name → rungs that the command allows, cheapest first."""
        of_command = (self.model, self.config, self.device)
        return {s.name: costs.cost_of(s.name).rungs(*of_command, s.name) for s in self.stages}

    def estimate(self, rung: Rung) -> StageEstimate:
        """Return the estimate of a stage on a rung for the largest chunks."""
        return self._estimate(rung, self.workloads)

    def estimate_smallest(self, rung: Rung) -> StageEstimate:
        return self._estimate(rung, (self.smallest,) if self.smallest else self.workloads)

    def _estimate(self, rung: Rung, workloads: Sequence[Workload]) -> StageEstimate:
        params = self.config.groups.generation
        conditions = Conditions(
            device=self.device,
            new_tokens=self.config.groups.engine.max_new_tokens,
            context_bytes=self.context_bytes,
            schema=bool(params.schema) or self.any_request,
            readers=self.config.readers(self.device),
            selection=SCORE_BYTES if self.any_request else params.non_defaults,
        )
        return costs.estimate(self.model, rung, workloads, conditions)


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """The rung selected for one stage."""

    requested: StageEstimate
    """Estimate on the rung that the command requests."""
    chosen: StageEstimate
    """Estimate on the rung that the stage starts on: the first that fits, else the first on which
    the smallest chunk fits, else the smallest."""
    fits: bool
    """Whether `chosen` is expected to stay within the budget."""
    refused: bool = False
    """Whether the stage cannot stay within the budget."""
    remembered: bool = False
    """Whether an earlier run found that `chosen` fits, regardless of the estimate."""


def plan_request(
    job: Job, stages: Pipeline | None = None, expected: Sequence[Estimate] | None = None
) -> PlanRequest:
    media = job.media
    expected = estimates(job) if expected is None else expected
    return PlanRequest(
        model=job.model,
        config=job.config,
        device=job.device,
        workloads=tuple(workloads_of(job.model, media, expected)),
        stages=job.stages if stages is None else stages,
        prompts=prompts_of(job),
        context_bytes=context_bytes(job.device, job.store),
        smallest=smallest_workload(job.model, media, expected),
    )


def prompts_of(job: Job) -> tuple[str, ...]:
    """Return the shortest prompt of a job under each name. A single file's prompt (from a list or
    its tags) that is too long fails alone when it is decoded."""
    shortest: dict[str, str] = {}
    for job_file in job.files:
        name, prompt = job_file.file.name, job_file.medium.prompt
        shortest[name] = min(shortest.get(name, prompt), prompt, key=max_prompt_tokens)
    return (*shortest.values(),)


def plan_request_of_model(
    model: Model, config: RunOptions, device: str, stages: Pipeline, prompt: str | None = None
) -> PlanRequest:
    """Return the plan request of a model without media. `prompt` None: the command's prompt."""
    prompt_text = prompt_for(model, config, "video") if prompt is None else prompt
    sampling = model.sampling(config)
    bound = frame_bound(model.beside_sound(config), config)
    return PlanRequest(
        model=model,
        config=config,
        device=device,
        workloads=tuple(standard_workloads(model, sampling, prompt_text, bound)),
        stages=stages,
        prompts=(prompt_text,),
        context_bytes=context_bytes(device, open_store(config.store_url)),
    )


def stage_plans(
    request: PlanRequest,
    rungs: Mapping[str, Sequence[Rung]],
    budget: Budget,
    known: Mapping[str, Rung] | None = None,
) -> dict[str, StagePlan]:
    """Return the plan of each stage. `known`: rungs that fitted in an earlier run."""
    known = known or {}
    return {
        stage.name: _remembered(request, rungs[stage.name][0], known[stage.name], budget)
        if stage.name in known
        else _stage_plan(request, rungs[stage.name], budget)
        for stage in request.stages
    }


def _with_recordings(
    request: PlanRequest, estimate: StageEstimate, budget: Budget
) -> StageEstimate:
    """Return the estimate with the memory of recorded passes, if that fits: they take no rung."""
    term = recordings_term(request.model, estimate, request.device)
    more = estimate.plus(term) if term else estimate
    return more if fits(more, budget) else estimate


def _remembered(request: PlanRequest, first: Rung, known: Rung, budget: Budget) -> StagePlan:
    chosen = _with_recordings(request, request.estimate(known), budget)
    requested, fitting = request.estimate(first), fits(chosen, budget)
    return StagePlan(requested=requested, chosen=chosen, fits=fitting, remembered=True)


def _stage_plan(request: PlanRequest, rungs: Sequence[Rung], budget: Budget) -> StagePlan:
    tried: list[StageEstimate] = []
    for rung in rungs:
        estimate = request.estimate(rung)
        tried.append(estimate)
        if fits(estimate, budget):
            chosen = _with_recordings(request, estimate, budget)
            return StagePlan(requested=tried[0], chosen=chosen, fits=True)
    # Chunks that are too large for every rung are run alone and do not hold up the others.
    for rung, estimate in zip(rungs, tried, strict=True):
        if fits(request.estimate_smallest(rung), budget):
            return StagePlan(requested=tried[0], chosen=estimate, fits=False)
    last = min(zip(rungs, tried, strict=True), key=lambda pair: pair[1].peak_bytes)
    smallest = request.estimate_smallest(last[0])
    return StagePlan(
        requested=tried[0], chosen=last[1], fits=False, refused=refused(smallest, budget)
    )


def memory_plan(plans: Mapping[str, StagePlan], budget: Budget) -> MemoryPlan:
    """Return the starting rung and estimate of each stage, for records."""
    stages = [choice.chosen.planned(fits=choice.fits) for choice in plans.values()]
    return MemoryPlan(budget_bytes=budget.bytes, budget_given=budget.given, stages=stages)


def fits(estimate: StageEstimate, budget: Budget) -> bool:
    """Return whether a stage is expected to stay within the budget."""
    return estimate.peak_bytes <= allowed(estimate, budget) and _host_holds(
        estimate.host_bytes, budget
    )


def refused(estimate: StageEstimate, budget: Budget) -> bool:
    """Return whether a stage cannot stay within the budget, allowing for the error of estimates.
    False for stages without a model, whose estimates are too uncertain."""
    if STAGES[estimate.rung.stage].part is None:
        return False
    certain, context_bytes = float(estimate.bytes_of("weight")), estimate.bytes_of("context")
    if context_bytes != CONTEXT_BYTES:  # measured on this GPU
        certain += context_bytes
    if not estimate.by_dimensions:
        certain += CERTAIN_SHARE * (estimate.bytes_of("activation") + estimate.bytes_of("kv"))
    host_bytes = CERTAIN_SHARE * estimate.host_bytes
    return certain > allowed(estimate, budget) or not _host_holds(host_bytes, budget)


def _host_holds(size: float, budget: Budget) -> bool:
    """Return whether the host memory suffices. On a CPU the budget is the limit: a budget above the
    free memory only causes a warning elsewhere."""
    return budget.device == "cpu" or size <= budget.host_bytes


def allowed(estimate: StageEstimate, budget: Budget) -> int:
    """Return the bytes that a stage may take on its compute device. A stage without a model uses
    the host."""
    on_host = STAGES[estimate.rung.stage].part is None and budget.device != "cpu"
    return budget.host_bytes if on_host else budget.bytes


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


def unplanned(job: Job) -> Capacity:
    """Return the capacity of a job before its work is planned."""
    request = PlanRequest(
        model=job.model, config=job.config, device=job.device, stages=job.stages, workloads=()
    )
    return Capacity(request=request, budget=job.budget)

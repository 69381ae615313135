"""Plans memory, disk and time of a run, and selects the rung on which each stage starts.

It builds the ladder of the job. A stage starts on a stored rung, or on the planned one. The module
starts no stage, and no process but the one that reads a model's profile.

`Plan` is what `penstock plan` shows, with the expected time where an earlier run noted seconds;
`plan_start` is its counterpart for a run.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain

from artifacts.disk.json_shapes import Json
from artifacts.errors import CannotFit
from artifacts.records.store import open_store, prepare_store
from artifacts.texts.captions import Failure
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import precision_note
from flows.core.job.card_sampling import with_card_sampling
from flows.core.job.plan_record import MemoryPlan
from flows.core.job.prepare import Job, NothingToDo, model_for, prepare
from flows.core.job.replan import replanned_once
from flows.core.job.summary import context_note
from flows.core.ledger.ledger import stages_with_work
from flows.core.ledger.prompts import check_summary
from flows.core.machine.budget import Budget, budget_on
from flows.core.machine.gpus import select_devices
from flows.core.machine.launch import Launcher
from flows.core.media.media_file import source_failure
from flows.core.options.commands import RunOptions
from flows.core.pipelines import CAPTION, STAGES, Pipeline, purposes, with_extras
from flows.core.plan.changes import cannot_fit
from flows.core.plan.choose import (
    Capacity,
    PlanRequest,
    StagePlan,
    memory_plan,
    plan_request,
    plan_request_of_model,
    stage_plans,
    unplanned,
)
from flows.core.plan.context_check import refuse_beyond_context, standard_notes
from flows.core.plan.ladder import Ladder, OnMove, Remembered, Rung
from flows.core.plan.sizes import Estimate, estimates
from flows.core.plan.store_limit import StoreLimit, store_limit
from flows.core.plan.times import Times, times_of
from stages.models.hub.transfer import Announce
from stages.process.device import device_uuid
from stages.process.stage_spec import StageSpec


def ladder_of(job: Job, on_move: OnMove) -> Ladder:
    """Return the ladder of a job. `on_move`: callback for each move."""
    return Ladder(
        unplanned(job).request.rungs,
        Remembered(job.store, {s.name: _about(job, s) for s in job.stages}, job.budget.bytes),
        budget_bytes=job.budget.bytes,
        on_move=on_move,
    )


def _about(job: Job, stage: StageSpec) -> list[Json]:
    """Return everything that determines a stage's memory use, for the key of stored rungs.

    It includes all settings that the part may run in: a ladder with fewer settings may end where
    one with more would continue.
    """
    model, cut = job.model, job.ledger.variant[job.pipeline[0].writes]
    about: list[Json] = [device_uuid(job.device), cut]
    if stage.part:
        key_fields = [settings.key_fields for settings in model.settings[stage.part]]
        about += [model.digests[stage.part], key_fields]
    limit = [job.config.groups.engine.max_new_tokens] if stage.uses_token_limit else []
    return [*about, *limit]


def choose(
    request: PlanRequest,
    budget: Budget,
    rungs: Mapping[str, Sequence[Rung]],
    stored: Mapping[str, Rung],
) -> dict[str, StagePlan]:
    """Return the starting plan of each stage. `rungs`: rungs of each stage, cheapest first.
    `stored`: rungs that fitted in an earlier run, used regardless of estimates. Raises
    CannotFit."""
    if not request.workloads:
        return {}
    plans = stage_plans(request, rungs, budget, stored)
    if refusal := cannot_fit(request, plans.values(), budget):
        raise refusal
    return plans


def plan_start(
    ladder: Ladder,
    job: Job,
    stages: Pipeline,
    expected: Sequence[Estimate],
    announce: Callable[[str], object] = lambda note: None,
) -> tuple[MemoryPlan, Capacity]:
    """Put the stages with work left on their planned or stored rungs. Return the memory plan for
    the run record, and what the memory holds. `announce` is called with a note for the user. Raises
    CannotFit."""
    request = plan_request(job, stages, expected)
    refuse_beyond_context(request)
    choices = choose(request, job.budget, ladder.rungs, ladder.known())
    ladder.start({stage: choice.chosen.rung for stage, choice in choices.items()})
    capacity = Capacity(request=request, budget=job.budget, gpus=len(job.devices))
    if note := capacity.processes_note([ladder.rung(stage.name) for stage in stages]):
        announce(note)
    return memory_plan(choices, job.budget), capacity


def takes_any_batches(model: Model, rung: Rung) -> bool:
    """Return whether a stage may encode chunks in any batches, in the order in which they are cut.
    A half whose layers are streamed is read once per block, so it needs all chunks at once."""
    if "frames" not in STAGES[rung.stage].reads or STAGES[rung.stage].part is None or rung.block:
        return False
    return not (model.profile.route == "joint" or model.fp16_check or model.in_batches)


def shares_device(model: Model, rungs: Sequence[Rung], devices: Sequence[str]) -> bool:
    """Return whether chunks are captioned in any order on one device, by a process beside the one
    that encodes. `rungs`: those of the frames, encode and decode stages."""
    if len(devices) != 1 or [r.stage for r in rungs] != [s.name for s in CAPTION]:
        return False
    _, encode, decode = rungs
    if not decode.in_slots or decode.offload or not takes_any_batches(model, encode):
        return False
    engine = model.best("language").choice[0]
    return not (engine.depends_on_batch or engine.gguf)


def computes_at_once(device: str) -> bool:
    """Return whether two processes compute on a device at the same time. On a CPU the threads of
    one use all cores: two took a quarter more of its time."""
    return device != "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The plan of a run."""

    request: PlanRequest
    budget: Budget
    stage_plans: dict[str, StagePlan]
    refusal: CannotFit | None
    """Error with the reason why it does not fit, and what would."""
    job: Job | None
    """The job; None without media, for which a standard chunk is assumed."""
    expected: tuple[Estimate, ...]
    """Size estimate of each medium."""
    limit: StoreLimit | None = None
    """What `--max-store` leaves of the store; None without the option, or without media."""
    unusable: tuple[Failure, ...] = ()
    """Why files are not planned, by their headers or an earlier run."""
    notes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    @property
    def capacity(self) -> Capacity:
        return Capacity(request=self.request, budget=self.budget, gpus=len(self.devices))

    @property
    def times(self) -> Times:
        """Return the time estimate; None and an empty text without media."""
        if self.job is None or not self.stage_plans:
            return None, ""
        rungs = {stage: choice.chosen.rung for stage, choice in self.stage_plans.items()}
        capacity = self.capacity
        return times_of(self.job, self.expected, lambda stage: capacity.processes(rungs[stage]))

    @property
    def together(self) -> Mapping[str, int]:
        """Return stage → bytes of the GPU for the stages that compute at the same time; nothing if
        one follows the other."""
        rungs = [choice.chosen.rung for choice in self.stage_plans.values()][: len(CAPTION)]
        able = shares_device(self.request.model, rungs, self.devices)
        at_once = able and computes_at_once(self.devices[0])
        return self.capacity.fit_together(rungs) if at_once else {}


def plan_of(
    config: RunOptions,
    launcher: Launcher,
    announce: Announce | None = None,
    *pipelines: Pipeline,
    left_out: Set[str] = frozenset(),
) -> Plan:
    """Return the plan of a command. Without sources, plan the model alone. Files whose place is in
    `left_out` are not planned.

    Uses the first of `pipelines` that suits the model (none given: of all pipelines). Reads no
    weights, but prepares the store. Raises PenstockError as the run does, but not if the command
    does not fit.
    """
    candidates = pipelines or chain.from_iterable(purposes().values())
    offered = with_extras(candidates, summary=config.groups.prompts.summary)

    def attempt() -> Plan:
        if not config.sources:
            return _plan_of_model(config, launcher, announce, offered)
        return _plan_of_job(
            prepare(config, launcher, announce, *offered, dry=True, left_out=left_out)
        )

    return replanned_once(attempt, announce or bool)


def _plan_of_job(job: Job) -> Plan:
    expected = tuple(estimates(job))
    unusable = _unusable(job, expected)
    if len(unusable) == len(job.by_file):
        raise NothingToDo(job.pipeline, unusable)
    request = plan_request(job, expected=expected)
    refuse_beyond_context(request)
    plan = _make_plan(request, job.budget, job, expected, job.devices)
    return replace(plan, unusable=tuple(unusable))


def _plan_of_model(
    config: RunOptions, launcher: Launcher, announce: Announce | None, pipelines: Sequence[Pipeline]
) -> Plan:
    store = open_store(config.store_url)
    prepare_store(store)
    # The plan of a model alone needs no working driver.
    model, pipeline, _ = model_for(config, launcher, store, pipelines, announce, read_weights=False)
    devices = select_devices(config.groups.gpus.gpus).devices
    check_summary(config, model)
    request = plan_request_of_model(model, config, devices[0], pipeline)
    refuse_beyond_context(request)
    plan = _make_plan(request, budget_on(config, devices), None, (), devices)
    note = precision_note(model.profile, [s[0] for s in model.settings.values()], devices[0])
    own_notes = (note, context_note(model, config))
    notes = (*filter(None, own_notes), *standard_notes(model, config), *model.notes)
    return replace(plan, notes=(*notes, *with_card_sampling(config, model.folder)[1]))


def _unusable(job: Job, expected: Sequence[Estimate]) -> list[Failure]:
    pairs = zip(job.media, expected, strict=True)
    failed = {medium.digest: e.failure for medium, e in pairs if e.failure is not None}
    return [
        source_failure(
            job_file.file.source, job_file.file.media_path, why["kind"], why["message"], why["hint"]
        )
        for job_file, *_ in job.by_file
        if (why := failed.get(job_file.medium.digest)) is not None
    ]


def _make_plan(
    request: PlanRequest,
    budget: Budget,
    job: Job | None,
    expected: tuple[Estimate, ...],
    devices: tuple[str, ...],
) -> Plan:
    # A plan only reads the stored rungs, so there are no moves to log.
    stored = ladder_of(job, lambda *_: None).known() if job else {}
    plans = stage_plans(request, request.rungs, budget, stored) if request.workloads else {}
    limit = store_limit(job, expected) if job else None
    has_work = job is not None and bool(stages_with_work(job.ledger, job.media))
    return Plan(
        request=request,
        budget=budget,
        stage_plans=plans,
        refusal=cannot_fit(request, plans.values(), budget)
        or (limit.refusal() if limit and has_work else None),
        job=job,
        expected=expected,
        limit=limit,
        devices=devices,
    )

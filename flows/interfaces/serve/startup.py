"""Builds a server from its configuration, holds its handlers, and shuts it down in order."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

from artifacts.disk.paths import folder_named
from artifacts.index.manifest import read_manifest
from artifacts.index.writing import refuse_other
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from artifacts.tiles import boxes_of
from flows.commands.label.label_set import LabelSet, label_set
from flows.commands.search.both import run_at
from flows.commands.search.query import maker_of, with_maker_of
from flows.core.checkpoint.weights import fetch_parts
from flows.core.console.display import Display
from flows.core.job.prepare import Job, prepare_without_media, sound_note
from flows.core.job.record_notes import note_namespaces
from flows.core.job.summary import context_note
from flows.core.ledger.namespaces import one_shot_namespace
from flows.core.machine.launch import DirectLauncher, ForkingLauncher, Launcher, StageCall
from flows.core.options.commands import RunOptions
from flows.core.options.serving import RequestLimits, ServeConfig
from flows.core.options.store import default_store
from flows.core.pipelines import CAPTION, LABEL, Pipeline, parts_of, without_hearing
from flows.core.plan.choose import PlanRequest, plan_request_of_model
from flows.core.plan.ladder import Ladder, Rung
from flows.core.plan.plan import choose, ladder_of
from flows.core.plan.sizes import UNKNOWN_SIZE
from flows.core.plan.workloads import STANDARD_CHUNKS, ChunkFrames, Workload, workload_of
from flows.execution.stage_calls import StageCallBuilder, WorkerStores
from flows.interfaces.serve.captioning import Captioning
from flows.interfaces.serve.decoders import Decoders, FrameSource, SoundSource
from flows.interfaces.serve.device_scheduler import DeviceScheduler
from flows.interfaces.serve.embedding import Labeller, MediumEmbedder, TextEmbedder
from flows.interfaces.serve.half_worker import (
    LOADING,
    WAITING,
    HalfWorker,
    HalfWorkerSpec,
    ModelWatch,
)
from flows.interfaces.serve.job_runner import JobRunner
from flows.interfaces.serve.jobs import JobFolder
from flows.interfaces.serve.metrics import Metrics
from flows.interfaces.serve.record_cache import RecordCacheFlusher
from flows.interfaces.serve.searching import ServedIndex
from flows.interfaces.serve.temp_store import TempStore, temp_folder
from flows.interfaces.serve.worker_process import LauncherMaker
from stages import hear, sound
from stages.embed_texts import STAGE as TEXTS
from stages.process.fork_client import ForkServer
from stages.process.host_memory import cores
from stages.process.stage_process import Listener
from stages.process.stage_spec import StageSpec
from stages.sound import LiveSoundJob


@dataclass(kw_only=True, slots=True)
class Service:
    """The request handlers. Handlers that the server was not configured with are None."""

    config: ServeConfig
    metrics: Metrics
    temp_store: TempStore
    scheduler: DeviceScheduler
    budget_bytes: int
    """Memory budget in bytes of all halves together."""
    job: Job | None = None
    """The embedding job."""
    media_embedder: MediumEmbedder | None = None
    texts: TextEmbedder | None = None
    labels: Labeller | None = None
    index: ServedIndex | None = None
    captions: Captioning | None = None
    jobs: JobFolder | None = None
    job_runner: JobRunner | None = None
    halves: list[HalfWorker] = field(default_factory=list)
    decoders: list[Decoders] = field(default_factory=list)
    model: ModelWatch = field(default_factory=ModelWatch)
    busy: int = 0
    """Number of requests in progress."""
    last_request: float = 0.0
    """Time at which the last of them was answered."""
    draining: bool = False
    """Whether it is shutting down."""
    ends: float = 0.0
    """Time by which the shutdown ends."""

    def drain(self) -> None:
        """Accept no more requests, and shut down within DRAIN_SECONDS."""
        if not self.draining:
            self.draining, self.ends = True, time.monotonic() + DRAIN_SECONDS

    @property
    def seconds_left(self) -> float:
        """Return the time left for halves to end, at least 0.5 s."""
        return max(0.5, self.ends - time.monotonic())

    def quiet_seconds(self) -> float:
        """Return the time since the last request, 0 while there is one."""
        return 0.0 if self.busy else time.monotonic() - self.last_request

    @property
    def queued(self) -> int:
        """Return the number of requests that wait for a batch."""
        return sum(len(half.batches.waiting) for half in self.halves)

    def why_not_ready(self) -> str:
        """Return why requests would have to wait; empty if they would not."""
        if self.model.error is not None:
            return f"reloading the model: {self.model.error.message}"
        if self.draining:
            return "shutting down"
        if self.scheduler.held_by:
            return f"the device is used by {self.scheduler.held_by}"
        for half in self.halves:
            if half.state in (WAITING, LOADING):
                return f"loading {half.name}"
            if half.is_silent:
                return f"{half.name} does not answer"
        return ""


DECODER_BYTES = 768 << 20
"""Memory in bytes of a decoding process beyond its imports."""


def typical_image(job: Job) -> Workload:
    """Return the image that batches are planned for: full HD with its tiles."""
    fit, tiles = job.model.fit("image"), job.config.groups.vectors.tiles
    stored = fit.stored(*UNKNOWN_SIZE)
    frames = ChunkFrames(1, stored, UNKNOWN_SIZE)
    workload = workload_of(job.model, "image", STANDARD_CHUNKS, frames, "")
    return replace(workload, parts=len(boxes_of(*stored, tiles, fit.edge)))


def plan_half(
    job: Job,
    stage: StageSpec,
    ladder: Ladder,
    config: ServeConfig,
    answers: Callable[[Iterable[str]], Mapping[str, Record | None]],
    places: WorkerStores,
    workloads: Sequence[Workload] = (),
) -> HalfWorkerSpec:
    """Return the settings of one half. `places` says where its records go. Raises CannotFit."""
    request = plan_request_of_model(job.model, job.config, job.device, (stage,), prompt="")
    every = (*request.workloads, *workloads)
    question: PlanRequest = replace(request, workloads=every, any_request=True)
    plans = choose(question, job.budget, ladder.rungs, ladder.known())
    ladder.start({name: choice.chosen.rung for name, choice in plans.items()})
    calls = StageCallBuilder(job)
    # llama.cpp makes room as requests need it.
    if not any(settings.gguf for settings in job.model.settings.get("language", ())):
        longest = max(workload.tokens for workload in every)
        calls.sequence_tokens = longest + job.config.groups.engine.max_new_tokens

    def call(rung: Rung, pipe: str, room: int) -> StageCall:
        return replace(calls.worker_call(stage, rung, pipe, places), budget=room)

    pixels = [workload.stored[0] * workload.stored[1] for workload in workloads]
    is_captioning = job.pipeline[-1].writes == "captions"
    return HalfWorkerSpec(
        name=stage.name,
        ladder=ladder,
        peak_bytes=cache(lambda rung: question.estimate(rung).peak_bytes),
        call=call,
        answers=answers,
        max_batch=config.max_batch,
        item_weight=max(pixels, default=1 << 40),
        wait_seconds=config.max_wait,
        idle_seconds=60 * config.idle,
        deadline=config.caption_deadline if is_captioning else config.deadline,
    )


def decoding_call(job: Job, limits: RequestLimits, store: str) -> Callable[[str], StageCall]:
    """Return a function that makes the call of a decoding process over a pipe."""
    calls = StageCallBuilder(job)
    call = calls.frames_call([], Rung(stage=job.pipeline[0].name, batch=1))
    chunks = max(1, round(limits.clip_seconds / job.sampling.chunk_seconds))

    def over(pipe: str) -> StageCall:
        job_with_limits = replace(
            calls.frames_job(),
            store=store,
            requests=pipe,
            max_pixels=limits.pixels,
            max_chunks=chunks,
        )
        given = replace(call, name="cut_live", job=job_with_limits)
        if (hearing := job.model.profile.hearing) is not None:
            namespace = job.ledger.variant[sound.STAGE.writes]
            of_sound = LiveSoundJob(frames=job_with_limits, namespace=namespace, rate=hearing.rate)
            given = replace(given, name="sound_live", job=of_sound)
        return replace(given, budget=DECODER_BYTES, beside=True, for_clients=True)

    return over


def read_and_drop(records: RecordSet) -> Callable[[Iterable[str]], dict[str, Record]]:
    """Return a function that reads records from a temporary store and deletes them."""

    def answers(keys: Iterable[str]) -> dict[str, Record]:
        requested = list(keys)
        records.look_up_pack(requested)
        if not all(key in records for key in requested):  # they were published in several packs
            records.refresh()
        by_key = {key: records.read(key) for key in requested}
        records.drop(requested)
        return by_key

    return answers


log = logging.getLogger(__name__)

POINT_SECONDS = 1.0
RESTART_SECONDS = 1.0
"""Seconds until a task that failed is started again."""
DRAIN_SECONDS = 30.0
MOST_DECODERS = 8


@asynccontextmanager
async def open_service(
    config: ServeConfig,
    display: Display,
    make_launcher: Callable[[Listener], Launcher] = DirectLauncher,
) -> AsyncIterator[Service]:
    """Yield the running service, and shut it down in order. Raises PenstockError."""
    with ExitStack() as stack:
        forks = stack.enter_context(ForkServer())

        def forking(listener: Listener) -> Launcher:
            return ForkingLauncher(make_launcher(listener), forks, listener)

        labels = label_set(config.labels, config.templates) if config.labels else None
        jobs = _Jobs(config, display, forking)
        needs_vectors = config.model or config.index
        vectors = await asyncio.to_thread(jobs.of_vectors) if needs_vectors else None
        captions = await asyncio.to_thread(jobs.of_captions) if config.caption_model else None
        first = vectors or captions
        assert first is not None
        temp_store = stack.enter_context(temp_folder(jobs.folder))
        service = Service(
            config=config,
            metrics=Metrics(),
            temp_store=temp_store,
            scheduler=DeviceScheduler(first.device, first.budget.bytes, display.print_line),
            budget_bytes=first.budget.bytes,
            index=jobs.index,
        )
        building = _Building(service, RecordCacheFlusher(display.print_line), forking, display)
        if vectors is not None:
            building.add_vectors(vectors, labels)
        if captions is not None:
            building.add_captions(captions)
            building.add_jobs(jobs.folder / "jobs")
        building.warm()
        async with _running(service, building.keeper):
            yield service


@asynccontextmanager
async def _running(service: Service, keeper: RecordCacheFlusher) -> AsyncIterator[None]:
    """Run all halves until the block ends, then let them finish their requests."""
    tasks = [asyncio.create_task(_restarted(half.name, half.run)) for half in service.halves]
    background = [
        asyncio.create_task(_restarted("storing results", keeper.run)),
        asyncio.create_task(_restarted("the plots", partial(_points, service))),
    ]
    for decoders in service.decoders:
        decoders.begin()
    jobs, runner = service.jobs, service.job_runner
    if runner is not None:
        background.append(asyncio.create_task(_restarted("the jobs", runner.run)))
    try:
        yield
    finally:
        if jobs is not None:  # first, because it leaves the device to the halves
            background[-1].cancel()
            await asyncio.wait(background[-1:])
            jobs.close()
        for half in service.halves:
            half.close()
        service.drain()
        await asyncio.wait(tasks, timeout=service.seconds_left)
        for task in (*tasks, *background):
            task.cancel()
        for decoders in service.decoders:
            decoders.stop()
        await keeper.save()


async def _restarted(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a task of the server to its end. An error is logged, and the task goes on after it: no
    request would be answered without it, and nobody would notice."""
    while True:
        try:
            return await run()
        except Exception:
            log.exception("%s failed, and is started again", name)
            await asyncio.sleep(RESTART_SECONDS)


async def _points(service: Service) -> None:
    while True:
        await asyncio.sleep(POINT_SECONDS)
        memory = sum(half.metrics.memory_bytes for half in service.halves)
        service.metrics.point(service.queued, memory, service.budget_bytes)


class _Jobs:
    """The jobs that provide the results of a server."""

    def __init__(self, config: ServeConfig, display: Display, launcher: LauncherMaker) -> None:
        self._config = config
        self._display = display
        self._launcher = launcher
        self.folder = open_store(config.store or default_store()).local / "serve"
        self.index: ServedIndex | None = None

    def of_vectors(self) -> Job:
        """Return the embedding job. With an index, its settings are those of the index."""
        config, requested = self._config, self._config.vectors_config(self._config.model)
        if not config.index:
            return self._job(requested, "vectors", LABEL)
        folder = folder_named(config.index, "index")
        there = read_manifest(folder).maker
        # Before the job measures the free memory: the bits stay in memory.
        self.index = ServedIndex(folder, there, run_at(config.captions), config.store)
        made = with_maker_of(replace(requested, model=there.model), there)
        job = self._job(replace(made, model=config.model or made.model), "vectors", LABEL)
        self.index.maker = maker_of(job, there.width)
        refuse_other(folder, there, self.index.maker)
        return job

    def of_captions(self) -> Job:
        job = self._job(self._config.caption_config(), "captions", CAPTION)
        for note in filter(None, (context_note(job.model, job.config), sound_note(job.model))):
            self._display.print_line(note)
        return job

    def _job(self, requested: RunOptions, name: str, pipeline: Pipeline) -> Job:
        config = replace(requested, out=str(self.folder / name))
        launcher = self._launcher(lambda stage, event: None)
        job = prepare_without_media(config, launcher, pipeline)
        fetch_parts(job.model, parts_of(pipeline), self._display)
        note_namespaces(job)
        return job


class _Building:
    """Adds halves and request handlers to a service."""

    def __init__(
        self,
        service: Service,
        keeper: RecordCacheFlusher,
        launcher: LauncherMaker,
        display: Display,
    ) -> None:
        self.keeper = keeper
        self._service = service
        self._launcher = launcher
        self._say = display.print_line

    def _half(self, plan: HalfWorkerSpec) -> HalfWorker:
        service = self._service
        return HalfWorker(
            replace(plan, model=service.model),
            service.scheduler,
            self._launcher,
            service.temp_store,
            service.metrics,
        )

    def add_vectors(self, job: Job, labels: LabelSet | None) -> None:
        """Add embedding of media and texts."""
        service, config, keeper = self._service, self._service.config, self.keeper
        ladder = ladder_of(job, lambda entry, text: self._say(text))
        store, stage = service.temp_store.store, job.pipeline[-1]
        places = WorkerStores(store=store.url)
        vectors = RecordSet(store, stage.writes, job.ledger.variant[stage.writes])
        typical, answers = [typical_image(job)], read_and_drop(vectors)
        vision = self._half(plan_half(job, stage, ladder, config, answers, places, typical))
        namespace = one_shot_namespace(TEXTS, job.model, job.model.best("language"))
        text_records = RecordSet(store, TEXTS.writes, namespace)
        language = self._half(
            plan_half(job, TEXTS, ladder, config, read_and_drop(text_records), places)
        )
        frames = FrameSource(job, self._decoders(job, cores()), keeper, service.temp_store)
        service.job = job
        service.media_embedder = MediumEmbedder(job, vision, frames, keeper, service.metrics)
        service.texts = TextEmbedder(job, language, keeper)
        service.labels = Labeller(job, service.texts, labels)
        self._add(vision, language)

    def add_captions(self, job: Job) -> None:
        service, config = self._service, self._service.config
        ladder = ladder_of(job, lambda entry, text: self._say(text))
        _, encode, decode = without_hearing(job.pipeline)
        places = WorkerStores(frames_store=service.temp_store.store.url)
        encoding = self._half(
            plan_half(job, encode, ladder, config, dict.fromkeys, places, [typical_image(job)])
        )
        hearing: list[HalfWorker] = []
        if job.model.hears:
            spec = plan_half(job, hear.STAGE, ladder, config, dict.fromkeys, places)
            hearing.append(self._half(spec))
        other = job.ledger.variants.other_engine(job.ledger.variant)
        places = WorkerStores(fallback_namespace=other[decode.writes] if other is not None else "")
        plan = plan_half(job, decode, ladder, config, dict.fromkeys, places)
        plan = replace(plan, withdraws=True)
        decoding: HalfWorker = self._half(plan)
        sounds = [SoundSource(job, h, self.keeper, service.temp_store) for h in hearing]
        frames = FrameSource(job, self._decoders(job, 1), self.keeper, service.temp_store, *sounds)
        captions = Captioning(job, encoding, decoding, frames, self.keeper, service.metrics)
        decoding.on_other_event = captions.on_event
        service.captions = captions
        service.temp_store.others.append(job.store.local)
        self._add(encoding, *hearing, decoding)

    def add_jobs(self, folder: Path) -> None:
        """Add jobs, which caption what is too long for a request."""
        service, config = self._service, self._service.config
        place = Path(config.jobs).expanduser().absolute() if config.jobs else folder
        budget, quiet_seconds = service.budget_bytes, service.quiet_seconds
        service.jobs = jobs = JobFolder(place, config)
        model, scheduler = config.caption_model, service.scheduler
        service.job_runner = JobRunner(jobs, model, scheduler, budget, quiet_seconds)
        service.temp_store.others.append(place)

    def warm(self) -> None:
        """Preload the halves that fit together, in order, before the first request."""
        taken = 0
        for half in self._service.halves:
            taken += half.peak_bytes
            if taken <= self._service.budget_bytes:
                half.preload = True

    def _add(self, *halves: HalfWorker) -> None:
        for half in halves:
            self._service.halves.append(half)
            self._service.scheduler.users.append(half)
            waiting = partial(len, half.batches.waiting)
            self._service.metrics.queue_depth.labels(half.name).set_function(waiting)

    def _decoders(self, job: Job, count: int) -> Decoders:
        service, temp_store = self._service, self._service.temp_store
        made = Decoders(
            max(1, min(MOST_DECODERS, count)),
            service.config.deadline,
            self._launcher,
            decoding_call(job, service.config, temp_store.store.url),
            temp_store,
            service.metrics,
        )
        service.decoders.append(made)
        return made

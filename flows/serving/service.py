"""Puts a server together: jobs, halves, decoders, and what answers by them; knows no HTTP."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from artifacts.index.manifest import read_manifest
from artifacts.index.writing import refuse_other
from artifacts.packs import RecordSet
from artifacts.paths import folder_named
from artifacts.store import open_store
from flows.console.display import Display
from flows.job.config import default_store
from flows.job.labels import LabelSet, label_set
from flows.job.launch import DirectLauncher, Forking, Launcher
from flows.job.namespaces import namespace_aside
from flows.job.prepare import Job, prepare_without_media
from flows.job.weights import fetch_parts
from flows.pipelines import LABEL
from flows.planning.start import ladder_of
from flows.running.run import claiming
from flows.search.maker import as_made, maker_of
from flows.serving.config import ServeConfig
from flows.serving.decoders import Decoders
from flows.serving.half import LOADING, WAITING, Half
from flows.serving.keeping import Keeper
from flows.serving.labelling import Labels
from flows.serving.live_stage import LauncherMaker
from flows.serving.metrics import Metrics
from flows.serving.plans import cutting, plan_half, read_and_drop, usual_picture
from flows.serving.residence import Residence
from flows.serving.scratch import Scratch, scratch_folder
from flows.serving.searching import Index
from flows.serving.seeing import Eyes
from flows.serving.texts import Texts
from stages.embed_texts import STAGE as TEXTS
from stages.process.cgroup import cores
from stages.process.forking import ForkServer
from stages.process.memory import anonymous_bytes
from stages.process.stage_process import Listener

POINT_SECONDS = 1.0
DRAIN_SECONDS = 30.0


@dataclass(kw_only=True, slots=True)
class Service:
    """All that answers."""

    config: ServeConfig
    metrics: Metrics
    scratch: Scratch
    job: Job | None = None
    """That by which vectors are made; None: none are."""
    eyes: Eyes | None = None
    texts: Texts | None = None
    labels: Labels | None = None
    index: Index | None = None
    halves: list[Half] = field(default_factory=list)
    decoders: list[Decoders] = field(default_factory=list)
    busy: int = 0
    """Requests that are being answered."""
    draining: bool = False
    """Whether it is about to end."""
    residence: Residence | None = None

    @property
    def memory_bytes(self) -> int:
        """Return the memory of the server and of all that it started."""
        pids = [half.pid for half in self.halves]
        pids += [pid for each in self.decoders for pid in each.pids]
        return anonymous_bytes(os.getpid()) + sum(anonymous_bytes(pid) for pid in pids if pid)

    def why_not_ready(self) -> str:
        """Return why requests would have to wait; empty where they would not."""
        if self.draining:
            return "ending"
        if self.residence is not None and self.residence.held_by:
            return f"{self.residence.held_by} has the device"
        return next((f"loading {h.name}" for h in self.halves if h.state in (WAITING, LOADING)), "")

    @property
    def queued(self) -> int:
        return sum(len(half.batches.waiting) for half in self.halves)


@asynccontextmanager
async def open_service(
    config: ServeConfig,
    display: Display,
    make_launcher: Callable[[Listener], Launcher] = DirectLauncher,
) -> AsyncIterator[Service]:
    """Yield what answers, and end it in order. Raises PenstockError."""
    with ExitStack() as stack:
        forks = stack.enter_context(ForkServer())

        def forking(listener: Listener) -> Launcher:
            return Forking(make_launcher(listener), forks)

        opening = _Opening(config, display, forking, stack)
        job = await asyncio.to_thread(opening.vectors_job)
        scratch = stack.enter_context(scratch_folder(opening.folder))
        service = Service(config=config, metrics=Metrics(), scratch=scratch)
        keeper = Keeper(display.say)
        if job is not None:
            _see(service, opening, job, keeper, forking, display)
        tasks = [asyncio.create_task(half.run()) for half in service.halves]
        beside = [asyncio.create_task(each) for each in (keeper.run(), _points(service))]
        for decoders in service.decoders:
            decoders.begin()
        try:
            yield service
        finally:
            for half in service.halves:
                half.close()
            await asyncio.wait(tasks, timeout=DRAIN_SECONDS) if tasks else None
            for task in (*tasks, *beside):
                task.cancel()
            for decoders in service.decoders:
                decoders.stop()
            await keeper.save()


class _Opening:
    """What is read before a server begins."""

    def __init__(
        self, config: ServeConfig, display: Display, launcher: LauncherMaker, stack: ExitStack
    ) -> None:
        self._config = config
        self._display = display
        self._launcher = launcher
        self._stack = stack
        self.folder = open_store(config.store or default_store()).local / "serve"

    def labels(self) -> LabelSet | None:
        config = self._config
        return label_set(config.labels, config.templates) if config.labels else None

    def vectors_job(self) -> Job | None:
        """Return the job by which vectors are made, if any are."""
        config = self._config
        if not (config.model or config.index):
            return None
        asked = config.vectors_config(config.model)
        manifest = None
        if config.index:
            manifest = read_manifest(folder_named(config.index, "index"))
            made = as_made(asked, manifest.maker)
            asked = replace(made, model=config.model or made.model, tiles=asked.tiles)
        asked = replace(asked, out=str(self.folder))
        job = prepare_without_media(asked, self._launcher(self._hear), LABEL)
        if manifest is not None:
            there = manifest.maker
            refuse_other(folder_named(config.index, "index"), there, maker_of(job, there.width))
        fetch_parts(job.model, ["vision", "language"], self._display)
        self._stack.enter_context(claiming(job))
        return job

    def _hear(self, name: str, event: object) -> None:
        """Hear nothing: a description takes a few seconds."""


def _see(
    service: Service,
    opening: _Opening,
    job: Job,
    keeper: Keeper,
    launcher: LauncherMaker,
    display: Display,
) -> None:
    """Give a service what makes vectors, of pictures and of texts."""
    config, scratch, metrics = service.config, service.scratch, service.metrics
    residence = Residence(job.device, job.budget.bytes, display.say)
    ladder = ladder_of(job, lambda entry, text: display.say(text))
    store, stage = scratch.store, job.pipeline[1]
    vectors = RecordSet(store, stage.writes, job.ledger.namespaces[stage.writes])
    told = {"store": store.url}
    plan = plan_half(job, stage, ladder, config, read_and_drop(vectors), told, [usual_picture(job)])
    seeing = Half(plan, residence, launcher, scratch, metrics)
    words = RecordSet(
        store, TEXTS.writes, namespace_aside(TEXTS, job.model, job.model.best("language"))
    )
    plan = plan_half(job, TEXTS, ladder, config, read_and_drop(words), told)
    reading = Half(plan, residence, launcher, scratch, metrics)
    decoders = Decoders(
        max(1, min(4, cores())),
        config.deadline,
        launcher,
        cutting(job, config, store.url),
        scratch,
        metrics,
    )
    service.job, service.residence = job, residence
    service.halves += [seeing, reading]
    service.decoders.append(decoders)
    service.eyes = Eyes(job, seeing, decoders, keeper, scratch, metrics)
    service.texts = Texts(job, reading, keeper)
    service.labels = Labels(job, service.texts, opening.labels())
    if config.index:
        service.index = Index(Path(folder_named(config.index, "index")))
    for half in (seeing, reading):
        metrics.watch_depth(half.name, half.depth)
    seeing.warm()


async def _points(service: Service) -> None:
    """Draw the page's time line."""
    while True:
        await asyncio.sleep(POINT_SECONDS)
        budget = service.job.budget.bytes if service.job else 0
        memory = sum(half.memory_bytes for half in service.halves)
        service.metrics.point(service.queued, memory, budget)

"""Builds the arguments of each stage process for a given rung. Starts no process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from artifacts.schema import FrameFit
from flows.checkpoint.graphs import GraphUse, engines_folder
from flows.checkpoint.models import Model
from flows.checkpoint.precision import PartSettings
from flows.job.prepare import Job
from flows.ledger.namespaces import Variant, namespace_aside
from flows.ledger.tasks import Medium, Task
from flows.ledger.waves import said_before
from flows.machine.launch import StageCall
from flows.options.text import EngineOptions
from flows.pipelines import STAGES
from flows.planning.rungs import Rung
from stages.decode.generation import SamplingParams
from stages.decode.job import DecodeItem, DecodeJob
from stages.embed_texts.job import TextsJob
from stages.encode.job import EncodeJob
from stages.frames.job import FramesItem, FramesJob
from stages.models.encoding.job import EncodeItem
from stages.models.graphs.providers import TENSORRT
from stages.models.half_job import HalfJob
from stages.process.job import job_fields
from stages.process.stage import StageSpec


def settings_on(model: Model, rung: Rung) -> PartSettings | None:
    """Return how the part of a stage is run on a rung; None for a stage without one."""
    part = STAGES[rung.stage].part
    kv = rung.kv if rung.kv == "quantized" else ""
    every = model.settings[part] if part else ()
    return next((s for s in every if (s.precision, s.kv) == (rung.precision, kv)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class LivePlaces:
    """Record locations of a worker process that differ from those of its job."""

    store: str = ""
    frames_store: str = ""
    instead: str = ""
    """Namespace of the captions of the second choice of a decode stage."""


class StageCallBuilder:
    """Builds the stage calls of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def frames(self, media: Sequence[tuple[Medium, list[int] | None]], rung: Rung) -> StageCall:
        """Return the call to cut these chunks of each medium; None: all of them."""
        items = [FramesItem(m.path, m.digest, m.kind, chunks, m.stamp) for m, chunks in media]
        told = replace(self.frames_job(), media=items, workers=rung.batch)
        return self._call(self._job.pipeline[0], told)

    def frames_job(self) -> FramesJob:
        """Return the job to cut media, without any."""
        job, stage = self._job, self._job.pipeline[0]
        return FramesJob(
            store=job.store.url,
            namespace=job.ledger.namespaces[stage.writes],
            sampling=job.sampling,
            fit_video=FrameFit(long_edges=job.model.fit("video").long_edges),
            fit_image=job.model.fit("image"),
            media=[],
            workers=1,
        )

    def records(
        self,
        stage: StageSpec,
        batches: Sequence[Sequence[Task]],
        rung: Rung,
        batch_instead: int = 0,
    ) -> StageCall:
        """Return the call to make the records of these batches, all in one variant. `batch_instead`
        is the largest batch of who has no slots on this rung (0: as many)."""
        namespaces = batches[0][0].namespaces
        if stage.job is not DecodeJob:
            items = [[self.encode_item(stage, task) for task in batch] for batch in batches]
            return self._call(stage, self._encoding(stage, namespaces, rung, items))
        other = self._job.ledger.instead(namespaces) if stage is self._job.pipeline[-1] else None
        told = replace(
            self._decoding(stage, namespaces, rung),
            batches=[[self.decode_item(stage, task, other) for task in batch] for batch in batches],
            instead=other[stage.writes] if other else "",
            batch_instead=batch_instead,
            said_before=self._said_before(stage, batches) if rung.seated else {},
        )
        return self._call(stage, told)

    def live(self, stage: StageSpec, rung: Rung, pipe: str, places: LivePlaces) -> StageCall:
        """Return the call of a stage that stays, and makes what it is told over its pipe."""
        namespaces = self._job.ledger.namespaces
        store = places.store or self._job.store.url
        told: Any
        if stage.job is DecodeJob:
            decoding = self._decoding(stage, namespaces, rung)
            slots = rung.batch if rung.seated else 0
            told = replace(decoding, instead=places.instead, slots=slots)
        elif stage.of_media:
            encoding = self._encoding(stage, namespaces, rung, [])
            told = replace(encoding, frames_store=places.frames_store)
        else:
            settings = settings_on(self._job.model, rung)
            assert settings is not None
            told = self._texts(stage, rung, namespace_aside(stage, self._job.model, settings))
        return replace(self._call(stage, replace(told, store=store, live=pipe)), stays=True)

    def texts(
        self, groups: Sequence[Sequence[str]], namespace: str, key: str, rung: Rung
    ) -> StageCall:
        """Return the call to make one record of the vectors of these groups of texts."""
        stage = STAGES[rung.stage]
        told = self._texts(stage, rung, namespace)
        return self._call(stage, replace(told, key=key, groups=[[*group] for group in groups]))

    def once(self, stage: StageSpec, make: Callable[..., object], rung: Rung) -> StageCall:
        """Return the call of a stage that looks at no media. Its job is made of its half on a rung,
        if it has one."""
        return self._call(stage, make(half=self.half(stage, rung)) if stage.part else make())

    def _texts(self, stage: StageSpec, rung: Rung, namespace: str) -> TextsJob:
        half, store = self.half(stage, rung), self._job.store.url
        return TextsJob(half=half, store=store, namespace=namespace, batch=rung.batch)

    def _encoding(
        self,
        stage: StageSpec,
        namespaces: Variant,
        rung: Rung,
        batches: Sequence[Sequence[EncodeItem]],
    ) -> Any:
        """Return the job of a stage that looks at frames."""
        make: Callable[..., Any] = stage.job
        make = partial(
            make,
            store=self._job.store.url,
            frames_namespace=namespaces[stage.reads],
            namespace=namespaces[stage.writes],
            batches=batches,
        )
        if stage.part is None:
            return make()
        make = partial(make, half=self.half(stage, rung), block=rung.block)
        if stage.job is EncodeJob:
            return make(frames_a_video=self._job.model.profile.frames_a_video)
        tiles, edge = namespaces.tiles, namespaces.fit_image.edge
        return make(tiles=tiles, edge=edge, pictures=rung.batch)

    def _decoding(self, stage: StageSpec, namespaces: Variant, rung: Rung) -> DecodeJob:
        """Return the job of the stage that captions, without chunks."""
        job, settings = self._job, settings_on(self._job.model, rung)
        assert settings is not None
        return DecodeJob(
            half=self.half(stage, rung),
            store=job.store.url,
            features_namespace=namespaces[stage.reads],
            namespace=namespaces[stage.writes],
            batches=[],
            max_new_tokens=EngineOptions.of(job.config).max_new_tokens,
            generation=SamplingParams.from_fields(SamplingParams.of(job.config).told),
            prefill=rung.prefill,
            kv=rung.kv,
            engine=settings.engine,
            beyond_context=job.config.as_published is False,
        )

    def _said_before(self, stage: StageSpec, batches: Sequence[Sequence[Task]]) -> dict[str, int]:
        return said_before(self._job.ledger, [t for batch in batches for t in batch], stage)

    def half(self, stage: StageSpec, rung: Rung) -> HalfJob:
        """Return the part of a stage on a rung."""
        model, settings = self._job.model, settings_on(self._job.model, rung)
        assert settings is not None and stage.part is not None
        adapter = settings.adapter
        half = HalfJob(
            model=str(model.folder),
            device=self._job.device,
            dtype=settings.dtype,
            precision=settings.precision,
            attention=settings.attention,
            as_published=settings.as_published,
            trust_remote_code=self._job.config.trust_remote_code,
            route=model.profile.route,
            pieces=model.profile.parts[stage.part].pieces,
            max_pixels=model.profile.max_pixels,
            max_video_pixels=model.profile.max_video_pixels,
            mlp_chunk=rung.prefill,
            offload=rung.offload,
            files=model.files_of([stage.part]),
            adapter=adapter.folder if adapter else "",
            adapted=adapter.modules if adapter else {},
        )
        return self._with_graphs(half, settings.graph, rung) if settings.graph else half

    def _with_graphs(self, half: HalfJob, graph: GraphUse, rung: Rung) -> HalfJob:
        """Return a half whose towers are computed by graphs."""
        job, engines = self._job, ""
        if graph.backend == TENSORRT:
            engines = str(engines_folder(job.store.local, graph.digest, job.device, rung.batch))
        room = job.budget.of_stage(job.device)
        return replace(half, backend=graph.backend, engines=engines, graph_bytes=room)

    def _call(self, stage: StageSpec, told: object) -> StageCall:
        device = self._job.device if stage.part else "cpu"
        return StageCall(
            name=stage.name,
            arguments=job_fields(told),
            device=device,
            log=self._job.out / "logs" / f"{stage.name}.log",
            budget=self._job.budget.of_stage(device),
        )

    def encode_item(self, stage: StageSpec, task: Task) -> EncodeItem:
        """Return a chunk as a stage that looks at frames is told it, with its prompt where that
        counts."""
        prompt = task.prompt if stage.writes in task.namespaces.prompted else ""
        fewer = task.stored is not None and stage.reads == self._job.pipeline[0].writes
        shown = len(task.chunk.times) if fewer else 0
        return EncodeItem(task[stage.writes], task[stage.reads], task.medium.kind, prompt, shown)

    def decode_item(self, stage: StageSpec, task: Task, other: Variant | None = None) -> DecodeItem:
        """Return a chunk as the decode stage is told it. Where another variant answers as well, its
        key in that one stands there, too."""
        instead = self._job.ledger.again(task, other)[stage.writes] if other is not None else ""
        item = DecodeItem(task[stage.writes], task[stage.reads], task.prompt, instead)
        return item._replace(kind=task.medium.kind)

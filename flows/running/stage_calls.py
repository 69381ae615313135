"""Builds the stage calls of a run: the job of each stage process on a given fallback rung."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from artifacts.keys import digest_of
from artifacts.schema import FrameFit
from flows.checkpoint.graphs import GraphUse, engines_folder
from flows.checkpoint.models import Model
from flows.checkpoint.precision import PartSettings
from flows.job.encode_ways import trials_namespace
from flows.job.prepare import Job
from flows.ledger.namespaces import Variant, one_shot_namespace
from flows.ledger.tasks import Medium, Task
from flows.ledger.waves import previous_lengths
from flows.machine.launch import StageCall
from flows.options.text import EngineOptions
from flows.pipelines import STAGES
from flows.planning.costs.decode import compiles
from flows.planning.rungs import Rung
from flows.running.ask_job import ask_job
from flows.running.batches import pass_rows
from stages.ask import AskItem, AskJob
from stages.decode.generation import SamplingParams
from stages.decode.job import DecodeItem, DecodeJob
from stages.embed_texts.job import TextsJob
from stages.encode.job import EncodeJob
from stages.frames.job import FramesItem, FramesJob
from stages.models.encoding.job import EncodeItem
from stages.models.graphs.providers import TENSORRT
from stages.models.half_job import HalfJob
from stages.process.device import device_capability
from stages.process.stage import StageSpec

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def settings_on(model: Model, rung: Rung) -> PartSettings | None:
    """Return the settings of a stage's model part on a rung, or None for a stage without a part."""
    part = STAGES[rung.stage].part
    kv = rung.kv if rung.kv == "quantized" else ""
    every = model.settings[part] if part else ()
    return next((s for s in every if (s.precision, s.kv) == (rung.precision, kv)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerStores:
    """Record locations of a worker process that differ from those of its job."""

    store: str = ""
    frames_store: str = ""
    fallback_namespace: str = ""
    """Cache namespace of captions that the fallback engine of a decode stage makes."""


class StageCallBuilder:
    """Builds the stage calls of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.may_compile = True
        """Whether decode steps may be compiled without a request; not after that has failed."""
        self.sequence_tokens = 0
        """Planned tokens of the longest sequence; 0: unknown."""
        self.seen: dict[str, list[str]] = {}
        """Address of a server → model and fingerprint that it has stated in this run."""

    def frames_call(
        self, media: Sequence[tuple[Medium, list[int] | None]], rung: Rung
    ) -> StageCall:
        """Return the call that cuts these chunks of each medium; None stands for all chunks."""
        items = [FramesItem(m.path, m.digest, m.kind, chunks, m.stamp) for m, chunks in media]
        job = replace(self.frames_job(), media=items, workers=rung.batch)
        return self._call(self._job.pipeline[0], job)

    def frames_job(self) -> FramesJob:
        """Return the frames job without media."""
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

    def media_call(
        self,
        stage: StageSpec,
        batches: Sequence[Sequence[Task]],
        rung: Rung,
        fallback_batch: int = 0,
        captions: int = 0,
    ) -> StageCall:
        """Return the call that makes the records of these batches, which share one variant.
        `fallback_batch` is the largest batch for an engine without slots on this rung (0: the same
        size). `captions` is the number of captions of the wave, made or not: if there are enough,
        the decode step may be compiled."""
        namespaces = batches[0][0].namespaces
        if stage.job is AskJob:
            asked = [
                AskItem(t[stage.writes], t[stage.reads], t.medium.kind, t.prompt)
                for batch in batches
                for t in batch
            ]
            return self._call(stage, ask_job(self._job, namespaces, rung, asked, self.seen))
        if stage.job is not DecodeJob:
            items = [[self.encode_item(stage, task) for task in batch] for batch in batches]
            return self._call(stage, self._encoding(stage, namespaces, rung, items))
        other = compiled = None
        if stage is self._job.pipeline[-1]:
            other = self._job.ledger.other_engine_variant(namespaces)
            compiled = self._compiled_variant(namespaces, rung, captions)
        tasks = [task for batch in batches for task in batch]
        job = replace(
            self._decoding(stage, namespaces, rung),
            batches=[
                [self.decode_item(stage, task, other, compiled) for task in batch]
                for batch in batches
            ],
            instead=other[stage.writes] if other else "",
            compiled_namespace=compiled[stage.writes] if compiled else "",
            batch_instead=fallback_batch,
            said_before=previous_lengths(self._job.ledger, tasks, stage) if rung.seated else {},
            slots=self.slots(rung, len(tasks)),
            rung_slots=rung.batch if self._job.device != "cpu" else 0,
        )
        return self._call(stage, job)

    def fed_call(self, stage: StageSpec, namespaces: Variant, rung: Rung, pipe: str) -> StageCall:
        """Return the call that encodes the chunks which `pipe` delivers while frames are cut."""
        return self._call(stage, replace(self._encoding(stage, namespaces, rung, []), feed=pipe))

    def worker_call(
        self, stage: StageSpec, rung: Rung, pipe: str, stores: WorkerStores
    ) -> StageCall:
        """Return the call of a persistent worker process, which reads its requests from `pipe`."""
        namespaces = self._job.ledger.namespaces
        store = stores.store or self._job.store.url
        job: Any
        if stage.job is DecodeJob:
            decoding = self._decoding(stage, namespaces, rung)
            slots = rung.batch if rung.seated else 0
            answering = {v[stage.reads] for v in self._job.ledger.answering_variants()}
            job = replace(
                decoding,
                instead=stores.fallback_namespace,
                slots=slots,
                other_features=sorted(answering - {decoding.features_namespace}),
            )
        elif stage.of_media:
            encoding = self._encoding(stage, namespaces, rung, [])
            job = replace(encoding, frames_store=stores.frames_store)
        else:
            settings = settings_on(self._job.model, rung)
            assert settings is not None
            namespace = one_shot_namespace(stage, self._job.model, settings)
            job = self._texts_job(stage, rung, namespace)
        return replace(self._call(stage, replace(job, store=store, live=pipe)), persistent=True)

    def texts_call(
        self, groups: Sequence[Sequence[str]], namespace: str, key: str, rung: Rung
    ) -> StageCall:
        """Return the call that makes one record with the vectors of these groups of texts."""
        stage = STAGES[rung.stage]
        job = self._texts_job(stage, rung, namespace)
        return self._call(stage, replace(job, key=key, groups=[[*group] for group in groups]))

    def one_shot_call(
        self, stage: StageSpec, make: Callable[..., "DataclassInstance"], rung: Rung
    ) -> StageCall:
        """Return the call of a stage without media. `make` builds its job, from the half on this
        rung if the stage has a part."""
        return self._call(stage, make(half=self.half(stage, rung)) if stage.part else make())

    def _texts_job(self, stage: StageSpec, rung: Rung, namespace: str) -> TextsJob:
        half, store = self.half(stage, rung), self._job.store.url
        return TextsJob(half=half, store=store, namespace=namespace, batch=rung.batch)

    def _encoding(
        self,
        stage: StageSpec,
        namespaces: Variant,
        rung: Rung,
        batches: Sequence[Sequence[EncodeItem]],
    ) -> Any:
        """Return the job of a stage that reads frames."""
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
        readers = self._job.config.readers(self._job.device)
        make = partial(make, half=self.half(stage, rung), block=rung.block, workers=readers)
        if not self._job.model.in_batches and (settings := settings_on(self._job.model, rung)):
            namespace = trials_namespace(self._job.model, settings, self._job.device)
            make = partial(make, trials_namespace=namespace)
        if stage.job is EncodeJob:
            return make(frames_a_video=self._job.model.profile.frames_a_video)
        tiles, edge = namespaces.tiles, namespaces.fit_image.edge
        trial = self._job.model.trial if rung.precision == "fp32" else ""
        return make(tiles=tiles, edge=edge, pictures=rung.batch, trial=trial)

    def _decoding(self, stage: StageSpec, namespaces: Variant, rung: Rung) -> DecodeJob:
        """Return the decode job without batches."""
        job, settings = self._job, settings_on(self._job.model, rung)
        assert settings is not None
        return DecodeJob(
            half=self.half(stage, rung),
            store=job.store.url,
            features_namespace=namespaces[stage.reads],
            namespace=namespaces[stage.writes],
            batches=[],
            max_new_tokens=EngineOptions.of(job.config).max_new_tokens,
            generation=SamplingParams(**SamplingParams.of(job.config).non_defaults),
            prefill=rung.prefill,
            kv=rung.kv,
            engine=settings.engine,
            rows_namespace=self._rows_namespace(settings),
        )

    def _compiled_variant(self, namespaces: Variant, rung: Rung, captions: int) -> Variant | None:
        """Return the variant of captions by compiled steps if they are worth a trial."""
        settings = settings_on(self._job.model, rung)
        if settings is None or not compiles(rung, settings, captions, self._job.device):
            return None
        engine = settings.choice[0]
        variant = self._job.ledger.engine_variant
        if not self.may_compile or variant(namespaces, engine.name) != namespaces:
            return None
        return variant(namespaces, engine.compiled_form)

    def slots(self, rung: Rung, items: int) -> int:
        """Return the number of slots for so many items; 0: the batch size."""
        more = self._job.device != "cpu" or EngineOptions.of(self._job.config).slots
        return min(rung.batch, items) if rung.seated and more else 0

    def _rows_namespace(self, settings: PartSettings) -> str:
        """Return the namespace of the number of rows per step of the language half, for its
        precision and this kind of GPU; empty on a CPU."""
        if self._job.device == "cpu":
            return ""
        half, kind = self._job.model.digests["language"], device_capability(self._job.device)
        return digest_of(["rows", half, settings.key_fields, kind])

    def half(self, stage: StageSpec, rung: Rung) -> HalfJob:
        """Return the half that a stage loads on a rung."""
        model, settings = self._job.model, settings_on(self._job.model, rung)
        assert settings is not None and stage.part is not None
        adapter = settings.adapter
        gguf = settings.gguf if stage.part == "language" else None
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
            today=model.today,
            max_pixels=model.profile.max_pixels,
            max_video_pixels=model.profile.max_video_pixels,
            mlp_chunk=rung.prefill,
            offload=rung.offload,
            files=model.files_of([stage.part]),
            gguf=gguf.path if gguf else "",
            gguf_copy=gguf.copy if gguf else "",
            gguf_tokens=self.sequence_tokens if gguf else 0,
            adapter=adapter.folder if adapter else "",
            adapted=adapter.modules if adapter else {},
        )
        return self._with_graphs(half, settings.graph, rung) if settings.graph else half

    def _with_graphs(self, half: HalfJob, graph: GraphUse, rung: Rung) -> HalfJob:
        """Return the half with its encoders computed by exported graphs."""
        job, engines = self._job, ""
        if graph.backend == TENSORRT:
            engines = str(engines_folder(job.store.local, graph.digest, job.device, rung.batch))
        room = job.budget.of_stage(job.device)
        return replace(half, backend=graph.backend, engines=engines, graph_bytes=room)

    def _call(self, stage: StageSpec, job: "DataclassInstance") -> StageCall:
        device = self._job.device if stage.part else "cpu"
        return StageCall(
            name=stage.name,
            job=job,
            device=device,
            log=self._job.out / "logs" / f"{stage.name}.log",
            budget=self._job.budget.of_stage(device),
        )

    def encode_item(self, stage: StageSpec, task: Task) -> EncodeItem:
        """Return the encode item of a chunk. It holds the prompt if the record depends on it."""
        prompt = task.prompt if stage.writes in task.namespaces.prompted else ""
        fewer = task.stored is not None and stage.reads == self._job.pipeline[0].writes
        shown = len(task.chunk.times) if fewer else 0
        rows = pass_rows(self._job.model, stage, task)
        made, read = task[stage.writes], task[stage.reads]
        return EncodeItem(made, read, task.medium.kind, prompt, shown, rows)

    def decode_item(
        self,
        stage: StageSpec,
        task: Task,
        other: Variant | None = None,
        compiled: Variant | None = None,
    ) -> DecodeItem:
        """Return the decode item of a chunk. It also holds the chunk's keys in these equivalent
        variants."""
        item = DecodeItem(task[stage.writes], task[stage.reads], task.prompt)
        in_variant = self._job.ledger.in_variant
        return item._replace(
            instead=in_variant(task, other)[stage.writes] if other else "",
            compiled=in_variant(task, compiled)[stage.writes] if compiled else "",
            kind=task.medium.kind,
        )

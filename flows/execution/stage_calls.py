"""Builds the stage calls of a run: the job of each stage process on a given fallback rung."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.frame_fit import FrameFit
from artifacts.texts.questions import QuestionProbe
from flows.core.checkpoint.graphs import GraphUse, engines_folder
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import PartSettings
from flows.core.job.prepare import Job
from flows.core.job.summary import made_by
from flows.core.ledger.namespaces import Variant, one_shot_namespace
from flows.core.ledger.tasks import Task
from flows.core.ledger.waves import previous_lengths
from flows.core.machine.fan_out import on_device, shared_by
from flows.core.machine.launch import StageCall
from flows.core.pipelines import STAGES
from flows.core.plan.costs.tag import pass_rows as pass_rows_of_tagger
from flows.core.plan.ladder import Rung
from flows.execution.batches import pass_rows
from stages.answer import AnswerItem, AnswerJob
from stages.ask import AskItem, AskJob
from stages.decode.generation import (
    CHECKPOINT,
    FALLBACK,
    OWN,
    DecodeItem,
    DecodeJob,
    SamplingParams,
)
from stages.embed_texts import TextsJob
from stages.frames.job import FramesItem, FramesJob
from stages.models.encoding import EncodeItem
from stages.models.graphs.sessions import TENSORRT
from stages.models.half_job import HalfJob
from stages.process.stage_spec import StageSpec
from stages.sound import SoundChunk, SoundItem, SoundJob
from stages.tag import TagJob

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
        self.job = job
        self.sequence_tokens = 0
        """Planned tokens of the longest sequence; 0: unknown."""
        self.seen: dict[str, list[str]] = {}
        """Address of a server → model and fingerprint that it has stated in this run."""

    def frames_call(
        self, media: Sequence[FramesItem], rung: Rung, expected: int = 0, pipe: str = ""
    ) -> StageCall:
        """Return the call that cuts these media, and those that are sent over `pipe`: about
        `expected` chunks in all."""
        job = replace(self.frames_job(), media=media, workers=rung.batch, requests=pipe)
        return replace(self._call(self.job.pipeline[0], job), expected=expected)

    def frames_job(self) -> FramesJob:
        """Return the frames job without media."""
        job, stage = self.job, self.job.pipeline[0]
        return FramesJob(
            store=job.store.url,
            namespace=job.ledger.variant[stage.writes],
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
        processes: int = 1,
    ) -> StageCall:
        """Return the call that makes the records of these batches, which share one variant, in at
        most so many processes on equal GPUs. `fallback_batch` is the largest batch for an engine
        without slots on this rung (0: the same size)."""
        request = JobRequest(
            stage=stage,
            rung=rung,
            variant=batches[0][0].variant,
            batches=batches,
            fallback_batch=fallback_batch,
        )
        call = self._call(stage, self._make(request))
        pieces = sum(map(len, batches)) if rung.in_slots else len(batches)
        devices = self.job.devices[: min(processes, pieces)] if stage.fans_out else ()
        if len(devices) < 2:
            return call
        return shared_by(call, devices, self.job.store)

    def fed_call(
        self,
        stage: StageSpec,
        variant: Variant,
        rung: Rung,
        pipes: Mapping[str, Path],
        *,
        chunks: int,
        fallback_batch: int = 0,
        share: int = 0,
    ) -> StageCall:
        """Return the call that handles about so many chunks, which `pipes` deliver to a process on
        each of these devices while others are made. `share`: bytes of the device that it may take
        beside another process; 0: it has the device for itself."""
        request = JobRequest(
            stage=stage, rung=rung, variant=variant, fallback_batch=fallback_batch, fed=chunks
        )
        fed = self._make(request)
        calls = [
            on_device(self._call(stage, replace(fed, requests=str(pipe))), device)
            for device, pipe in pipes.items()
        ]
        call = replace(calls[0], copies=tuple(calls[1:]))
        return replace(call, beside=True, budget=share) if share else call

    def worker_call(
        self, stage: StageSpec, rung: Rung, pipe: str, stores: WorkerStores
    ) -> StageCall:
        """Return the call of a worker process, to which clients' requests are sent over
        `pipe`."""
        variant = self.job.ledger.variant
        request = JobRequest(stage=stage, rung=rung, variant=variant, stores=stores)
        store = stores.store or self.job.store.url
        job = replace(self._make(request), store=store, requests=pipe)
        return replace(self._call(stage, job), beside=True, for_clients=True)

    def texts_call(self, groups: Sequence[Sequence[str]], key: str, rung: Rung) -> StageCall:
        """Return the call that makes one record with the vectors of these groups of texts."""
        stage, variant = STAGES[rung.stage], self.job.ledger.variant
        texts = self._make(JobRequest(stage=stage, rung=rung, variant=variant))
        return self._call(stage, replace(texts, key=key, groups=[[*group] for group in groups]))

    def answers_call(
        self, items: Sequence[AnswerItem], features_of: Variant, rung: Rung
    ) -> StageCall:
        """Return the call that makes the answers of these items, which are about features of this
        variant."""
        stage, settings = STAGES[rung.stage], settings_on(self.job.model, rung)
        assert stage.part is not None and settings is not None
        answering = (features_of["features"], {**features_of.precision, stage.part: settings.label})
        variants = self.job.ledger.variants
        variant = next(v for v in variants if (v["features"], v.precision) == answering)
        job = self._make(JobRequest(stage=stage, rung=rung, variant=variant))
        return self._call(stage, replace(job, batches=[[item] for item in items]))

    def _make(self, request: "JobRequest") -> Any:
        return MAKERS.get(request.stage.name, _encode_form)(self, request)

    def one_shot_call(
        self, stage: StageSpec, make: Callable[..., "DataclassInstance"], rung: Rung
    ) -> StageCall:
        """Return the call of a stage without media. `make` builds its job, from the half on this
        rung if the stage has a part."""
        return self._call(stage, make(half=self.half(stage, rung)) if stage.part else make())

    def slots(self, rung: Rung, items: int) -> int:
        """Return the number of slots for so many items: on a CPU at most a batch, unless the user
        asks for more; 0 for an engine without slots."""
        config = self.job.config
        more = self.job.device != "cpu" or config.groups.engine.slots
        most = rung.batch if more else min(rung.batch, config.batch_size)
        return min(most, items) if rung.in_slots else 0

    def half(self, stage: StageSpec, rung: Rung) -> HalfJob:
        """Return the half that a stage loads on a rung."""
        model, settings = self.job.model, settings_on(self.job.model, rung)
        assert settings is not None and stage.part is not None
        adapter = settings.adapter
        gguf = settings.gguf if stage.part == "language" else None
        half = HalfJob(
            model=str(model.folder),
            device=self.job.device,
            dtype=settings.dtype,
            precision=settings.precision,
            attention=settings.attention,
            as_published=settings.as_published,
            trust_remote_code=self.job.config.trust_remote_code,
            route=model.profile.route,
            extra_modules=model.profile.parts[stage.part].extra_modules,
            today=model.today,
            max_pixels=model.profile.max_pixels,
            max_video_pixels=model.profile.max_video_pixels,
            mlp_chunk=rung.prefill,
            offload=rung.offload,
            packed=rung.packed,
            files=model.files_of([stage.part]),
            digest=model.half_digest(stage.part, settings),
            title=f"the {stage.part} half of {model.name} in {settings.label}",
            gguf=gguf.path if gguf else "",
            gguf_copy=gguf.copy if gguf else "",
            gguf_tokens=self.sequence_tokens if gguf else 0,
            adapter=adapter.folder if adapter else "",
            adapted=adapter.modules if adapter else {},
        )
        return self._with_graphs(half, settings.graph, rung) if settings.graph else half

    def _with_graphs(self, half: HalfJob, graph: GraphUse, rung: Rung) -> HalfJob:
        """Return the half with its encoders computed by exported graphs."""
        job, engines = self.job, ""
        if graph.backend == TENSORRT:
            engines = str(engines_folder(job.store.local, graph.digest, job.device, rung.batch))
        room = job.budget.of_stage(job.device)
        return replace(half, backend=graph.backend, engines=engines, graph_bytes=room)

    def _call(self, stage: StageSpec, job: "DataclassInstance") -> StageCall:
        device = self.job.device if stage.part else "cpu"
        return StageCall(
            name=stage.name,
            job=job,
            device=device,
            log=self.job.out / "logs" / f"{stage.name}.log",
            budget=self.job.budget.of_stage(device),
        )

    def encode_item(self, stage: StageSpec, task: Task) -> EncodeItem:
        """Return the encode item of a chunk. It holds the prompt if the record depends on it."""
        prompt = task.prompt if stage.writes in task.variant.prompted else ""
        (kind,) = stage.reads
        fewer = task.stored is not None and kind == self.job.pipeline[0].writes
        shown = len(task.chunk.times) if fewer else 0
        rows = pass_rows(self.job.model, stage, task)
        return EncodeItem(task[stage.writes], task[kind], task.medium.kind, prompt, shown, rows)

    def decode_item(self, stage: StageSpec, task: Task, other: Variant | None = None) -> DecodeItem:
        """Return the decode item of a chunk. It also holds the chunk's key in the variant of the
        fallback engine."""
        item = DecodeItem(task[stage.writes], task["features"], task.prompt)
        return item._replace(
            fallback_key=task.in_variant(other)[stage.writes] if other else "",
            heard=task.keys.get("heard", ""),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """What one process of a stage is to do."""

    stage: StageSpec
    rung: Rung
    variant: Variant
    """Variant in which its records are made."""
    batches: Sequence[Sequence[Task]] = ()
    """Its work; empty: it is sent over a pipe."""
    fed: int = 0
    """Expected number of chunks of this job that are sent; 0: clients send requests."""
    fallback_batch: int = 0
    """As in `StageCallBuilder.media_call`."""
    stores: WorkerStores = WorkerStores()
    """Record locations of a worker process."""

    @property
    def for_clients(self) -> bool:
        """Whether clients send the work."""
        return not (self.batches or self.fed)


def _encode_form(calls: StageCallBuilder, request: JobRequest) -> Any:
    """Return the job of a stage that reads frames, or sound."""
    job, stage, rung = calls.job, request.stage, request.rung
    fields: dict[str, Any] = {
        "store": job.store.url,
        "frames_namespace": request.variant[stage.reads[0]],
        "namespace": request.variant[stage.writes],
        "batches": [[calls.encode_item(stage, t) for t in batch] for batch in request.batches],
    }
    if stage.part is not None:
        readers = job.config.readers(job.device)
        fields |= {"half": calls.half(stage, rung), "block": rung.block, "workers": readers}
        fields |= {"frames_store": request.stores.frames_store, "for_clients": request.for_clients}
    if stage.part == "vision":
        fields["in_passes"] = not job.model.in_batches
    return stage.job(**fields)


def _sound_job(calls: StageCallBuilder, request: JobRequest) -> SoundJob:
    job, kind = calls.job, request.stage.writes
    hearing, chunks = job.model.profile.hearing, dict[str, list[Task]]()
    assert hearing is not None
    for task in (task for batch in request.batches for task in batch):
        chunks.setdefault(task.medium.digest, []).append(task)
    media = [
        SoundItem(
            path=(medium := tasks[0].medium).path,
            digest=medium.digest,
            chunks=sorted(
                (SoundChunk(t[kind], t.chunk.start, t.chunk.end) for t in tasks),
                key=attrgetter("start"),
            ),
            stamp=medium.stamp,
        )
        for tasks in chunks.values()
    ]
    return SoundJob(
        store=job.store.url,
        namespace=request.variant[kind],
        rate=hearing.rate,
        track=job.config.groups.sound.sound_track or 0,
        media=media,
        workers=request.rung.batch,
    )


def _encode_job(calls: StageCallBuilder, request: JobRequest) -> Any:
    video = calls.job.model.profile.frames_per_video
    return replace(_encode_form(calls, request), frames_per_video=video)


def _embed_job(calls: StageCallBuilder, request: JobRequest) -> Any:
    variant, rung = request.variant, request.rung
    return replace(
        _encode_form(calls, request),
        tiles=variant.tiles,
        edge=variant.fit_image.edge,
        pictures=rung.batch,
        fp16_check=calls.job.model.fp16_check if rung.precision == "fp32" else "",
    )


def _decode_job(calls: StageCallBuilder, request: JobRequest) -> DecodeJob:
    job, stage, rung, variant = calls.job, request.stage, request.rung, request.variant
    settings = settings_on(job.model, rung)
    assert settings is not None
    decode_job = DecodeJob(
        half=calls.half(stage, rung),
        store=job.store.url,
        features_namespace=variant["features"],
        heard_namespace=variant.of.get("heard", ""),
        namespace=variant[stage.writes],
        batches=[],
        max_new_tokens=job.config.groups.engine.max_new_tokens,
        generation=SamplingParams(**job.config.groups.generation.non_defaults),
        made_by=made_by(job.model),
        prefill=rung.prefill,
        kv=rung.kv,
        engine=settings.engine,
        sequence_tokens=calls.sequence_tokens,
    )
    if request.for_clients:
        answering = {v["features"] for v in job.ledger.variants.answering(variant)}
        unheard = job.ledger.variants.unheard(variant)
        other = job.ledger.variants.other_engine(unheard)
        silent = {OWN: unheard, **({FALLBACK: other} if other else {})}
        return replace(
            decode_job,
            for_clients=True,
            fallback_namespace=request.stores.fallback_namespace,
            unheard_namespaces={maker: v[stage.writes] for maker, v in silent.items()},
            slots=rung.batch if rung.in_slots else 0,
            other_features=sorted(answering - {decode_job.features_namespace}),
        )
    is_last = stage is job.pipeline[-1]
    other = job.ledger.variants.other_engine(variant) if is_last else None
    tasks = [task for batch in request.batches for task in batch]
    return replace(
        decode_job,
        batches=[
            [calls.decode_item(stage, task, other) for task in batch] for batch in request.batches
        ],
        fallback_namespace=other[stage.writes] if other else "",
        fallback_batch=request.fallback_batch,
        previous_lengths=previous_lengths(job.ledger, tasks, stage) if rung.in_slots else {},
        slots=calls.slots(rung, len(tasks) or request.fed),
        rung_slots=rung.batch if job.device != "cpu" else 0,
    )


def _answer_job(calls: StageCallBuilder, request: JobRequest) -> AnswerJob:
    job, stage, rung, variant = calls.job, request.stage, request.rung, request.variant
    by_chunk: dict[str, list[AnswerItem]] = {}
    for task in (task for batch in request.batches for task in batch):
        probe, heard = QuestionProbe.of(task.prompt), task.keys.get("heard", "")
        item = AnswerItem(task[stage.writes], task["features"], probe.prompt, probe.labels, heard)
        by_chunk.setdefault(task["features"] + heard, []).append(item)
    return AnswerJob(
        half=calls.half(stage, rung),
        store=job.store.url,
        features_namespace=variant["features"],
        namespace=variant[stage.writes],
        heard_namespace=variant.of.get("heard", ""),
        batches=[*by_chunk.values()],
        prefill=rung.prefill,
        made_by=made_by(job.model),
    )


def _texts_job(calls: StageCallBuilder, request: JobRequest) -> TextsJob:
    job, stage, rung = calls.job, request.stage, request.rung
    settings = settings_on(job.model, rung)
    assert settings is not None
    return TextsJob(
        half=calls.half(stage, rung),
        store=job.store.url,
        namespace=one_shot_namespace(stage, job.model, settings),
        batch=rung.batch,
    )


def _ask_job(calls: StageCallBuilder, request: JobRequest) -> AskJob:
    job, stage, variant = calls.job, request.stage, request.variant
    served, config = job.model.served, job.config
    assert served is not None
    params, keys = config.groups.generation, config.groups.endpoint.endpoint_keys
    sampling = {"temperature": params.temperature} if params.temperature is not None else {}
    if not params.is_sampled and params.sampling != CHECKPOINT:
        sampling = {"temperature": 0.0}
    for name in ("top_p", "presence_penalty"):
        value = getattr(params, name)
        sampling |= {name: value} if value is not None else {}
    return AskJob(
        store=job.store.url,
        frames_namespace=variant["frames"],
        namespace=variant[stage.writes],
        writes=stage.writes,
        items=[
            AskItem(task[stage.writes], task["frames"], task.medium.kind, task.prompt)
            for batch in request.batches
            for task in batch
        ],
        model=served.model,
        endpoints=[endpoint.url for endpoint in served.endpoints],
        keys_file=os.path.abspath(os.path.expanduser(keys)) if keys else "",
        fit=job.model.fit("image"),
        video=variant.sends_video,
        at_once=request.rung.batch,
        max_new_tokens=config.groups.engine.max_new_tokens,
        system=params.system,
        schema=params.schema,
        sampling=sampling,
        made_by=made_by(job.model),
        seed=params.seed if params.is_sampled else None,
        seen=dict(calls.seen),
    )


def _probe_job(calls: StageCallBuilder, request: JobRequest) -> AskJob:
    """Return the job that makes no text, and asks for the labels of each item as one token."""
    job = _ask_job(calls, request)
    probes = [(chunk, QuestionProbe.of(chunk.prompt)) for chunk in job.items]
    items = [chunk._replace(prompt=probe.prompt, labels=probe.labels) for chunk, probe in probes]
    return replace(job, items=items, max_new_tokens=1)


def _tag_job(calls: StageCallBuilder, request: JobRequest) -> TagJob:
    job, stage, tagger = calls.job, request.stage, calls.job.model.tagger
    assert tagger is not None
    return TagJob(
        store=job.store.url,
        frames_namespace=request.variant[stage.reads[0]],
        namespace=request.variant[stage.writes],
        batches=[[calls.encode_item(stage, t) for t in batch] for batch in request.batches],
        declaration=str(tagger.file),
        graph=str(tagger.graph),
        files=job.model.files_of(["vision"]),
        picture=tagger.declared.input,
        taken=tagger.declared.output,
        tags=len(tagger.tags),
        rows=pass_rows_of_tagger(job.model, request.rung, job.device),
        device=job.device,
        device_bytes=job.budget.of_stage(job.device),
    )


MAKERS: Mapping[str, Callable[[StageCallBuilder, JobRequest], Any]] = {
    "answer": _answer_job,
    "ask": _ask_job,
    "ask_probes": _probe_job,
    "decode": _decode_job,
    "embed": _embed_job,
    "embed_texts": _texts_job,
    "encode": _encode_job,
    "sound": _sound_job,
    "tag": _tag_job,
}
"""Stage name → function that makes its job. Any other stage that reads frames or
sound has the encode form.
The jobs of stages that run once are made where their content is known."""

"""Writes down what each stage is told, on whatever rung; starts nothing and knows not what runs
after what."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from artifacts.schema import Part
from flows.job.adapters import AdapterUse
from flows.job.graphs import GraphUse
from flows.job.launch import StageCall
from flows.job.models import Model
from flows.job.namespaces import Namespaces, namespace_aside
from flows.job.precision import PartSettings
from flows.job.prepare import Job
from flows.job.tasks import Medium, Task
from flows.job.tensorrt import engines_folder
from flows.job.waves import said_before
from flows.options.text import EngineOptions
from flows.pipelines import STAGES
from flows.planning.rungs import Rung
from stages.decode.generation import Generation
from stages.decode.job import DecodeJob
from stages.embed.job import EmbedJob
from stages.encode.job import EncodeJob
from stages.frames.job import FramesJob
from stages.models.graphs.providers import TENSORRT
from stages.models.half_job import HalfJob
from stages.process.job import job_of, told_of
from stages.process.stage import Stage


def settings_on(model: Model, rung: Rung) -> PartSettings | None:
    """Return how the part of a stage is run on a rung; None for a stage without one."""
    part = STAGES[rung.stage].part
    kv = rung.kv if rung.kv == "quantized" else ""
    every = model.settings[part] if part else ()
    return next((s for s in every if (s.precision, s.kv) == (rung.precision, kv)), None)


def _adapter(adapter: AdapterUse | None) -> dict[str, Any]:
    """Return what a half is told that is run with an adapter."""
    return {} if adapter is None else {"adapter": adapter.folder, "adapted": adapter.modules}


class Calls:
    """The calls of the stages of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def frames(self, media: Sequence[tuple[Medium, list[int] | None]], rung: Rung) -> StageCall:
        """Return the call to cut these chunks of each medium; None: all of them."""
        job, stage = self._job, self._job.pipeline[0]
        told = FramesJob(
            store=job.store.url,
            namespace=job.ledger.namespaces[stage.writes],
            sampling=asdict(job.sampling),
            fit={kind: job.model.fit(kind).long_edges for kind in ("video", "image")},
            shrinks=job.model.fit("image").shrinks,
            media=[
                {
                    "path": m.path,
                    "digest": m.digest,
                    "kind": m.kind,
                    "wanted": chunks,
                    "stamp": m.stamp,
                }
                for m, chunks in media
            ],
            workers=rung.batch,
        )
        return self._call(stage, told)

    def records(
        self, stage: Stage, batches: Sequence[Sequence[Task]], rung: Rung, batch_instead: int = 0
    ) -> StageCall:
        """Return the call to make the records of these batches, all in one variant. `batch_instead`
        is the largest batch of who has no slots on this rung (0: as many)."""
        job, namespaces = self._job, batches[0][0].namespaces
        other = job.ledger.instead(namespaces) if stage is job.pipeline[-1] else None
        members = [[self.member(stage, task, other) for task in batch] for batch in batches]
        told: dict[str, Any] = {"batches": members}
        if stage.job is DecodeJob:
            told["instead"] = other[stage.writes] if other else ""
            told["batch_instead"] = batch_instead
            told["said_before"] = self._said_before(stage, batches) if rung.seated else {}
        return self._of_records(stage, namespaces, told, rung)

    def live(self, stage: Stage, rung: Rung, told: Mapping[str, Any]) -> StageCall:
        """Return the call of a stage that stays, and makes what it is told over its pipe `live`,
        which is among what is `told`."""
        namespaces = self._job.ledger.namespaces
        if stage.of_media:
            call = self._of_records(stage, namespaces, {"batches": [], **told}, rung)
        else:
            settings = settings_on(self._job.model, rung)
            assert settings is not None
            namespace = namespace_aside(stage, self._job.model, settings)
            call = self.once(stage, {"namespace": namespace, "batch": rung.batch, **told}, rung)
        return replace(call, stays=True)

    def _of_records(
        self, stage: Stage, namespaces: Namespaces, told: Mapping[str, Any], rung: Rung
    ) -> StageCall:
        job = self._job
        every = {
            "store": job.store.url,
            f"{stage.reads}_namespace": namespaces[stage.reads],
            "namespace": namespaces[stage.writes],
            **self._of_stage(stage, namespaces, rung),
            **told,
        }
        if stage.part:
            every |= self._part(stage.part, rung)
        return self._call(stage, job_of(stage.job, every))

    def _of_stage(self, stage: Stage, namespaces: Namespaces, rung: Rung) -> dict[str, Any]:
        """Return what the job of one stage alone is told."""
        job = self._job
        if stage.job is DecodeJob:
            settings = settings_on(job.model, rung)
            assert settings is not None
            return {
                "max_new_tokens": EngineOptions.of(job.config).max_new_tokens,
                "generation": Generation.of(job.config).told,
                "prefill": rung.prefill,
                "kv": rung.kv,
                "engine": settings.engine,
                "beyond_context": job.config.as_published is False,
            }
        if stage.job is EmbedJob:
            tiles, edge = namespaces.tiles, namespaces.fit_image.edge
            return {"block": rung.block, "tiles": tiles, "edge": edge, "pictures": rung.batch}
        if stage.job is EncodeJob:
            return {"block": rung.block, "frames_a_video": job.model.profile.frames_a_video}
        return {}

    def texts(
        self, groups: Sequence[Sequence[str]], namespace: str, key: str, rung: Rung
    ) -> StageCall:
        """Return the call to make one record of the vectors of these groups of texts."""
        told = {
            "store": self._job.store.url,
            "namespace": namespace,
            "key": key,
            "groups": [list(group) for group in groups],
            "batch": rung.batch,
        }
        return self.once(STAGES[rung.stage], told, rung)

    def once(self, stage: Stage, told: Mapping[str, Any], rung: Rung) -> StageCall:
        """Return the call of a stage that looks at no media, with its part on a rung."""
        part = self._part(stage.part, rung) if stage.part else {}
        return self._call(stage, job_of(stage.job, {**part, **told}))

    def _said_before(self, stage: Stage, batches: Sequence[Sequence[Task]]) -> dict[str, int]:
        return said_before(self._job.ledger, [t for batch in batches for t in batch], stage)

    def _part(self, part: Part, rung: Rung) -> dict[str, Any]:
        model, settings = self._job.model, settings_on(self._job.model, rung)
        assert settings is not None
        half = HalfJob(
            model=str(model.folder),
            device=self._job.device,
            dtype=settings.dtype,
            precision=settings.precision,
            attention=settings.attention,
            as_published=settings.as_published,
            trust_remote_code=self._job.config.trust_remote_code,
            route=model.profile.route,
            pieces=model.profile.parts[part].pieces,
            max_pixels=model.profile.max_pixels,
            max_video_pixels=model.profile.max_video_pixels,
            mlp_chunk=rung.prefill,
            offload=rung.offload,
            files=model.files_of([part]).to_json(),
            **_adapter(settings.adapter),
            **self._graphs(settings.graph, rung),
        )
        return told_of(half)

    def _graphs(self, graph: GraphUse | None, rung: Rung) -> dict[str, Any]:
        """Return what a half is told whose towers are computed by graphs."""
        if graph is None:
            return {}
        job, told = self._job, {"backend": graph.backend}
        if graph.backend == TENSORRT:
            folder = engines_folder(job.store.local, graph.digest, job.device, rung.batch)
            told["engines"] = str(folder)
        return {**told, "graph_bytes": job.budget.of_stage(job.device)}

    def _call(self, stage: Stage, told: Any) -> StageCall:
        device = self._job.device if stage.part else "cpu"
        return StageCall(
            name=stage.name,
            arguments=told_of(told),
            device=device,
            log=self._job.out / "logs" / f"{stage.name}.log",
            budget=self._job.budget.of_stage(device),
        )

    def member(self, stage: Stage, task: Task, other: Namespaces | None = None) -> dict[str, Any]:
        """Return a member of a batch: its key, the key that it reads, the prompt where that counts.
        Where another variant answers as well, its key in that one stands there, too."""
        made, ledger = stage.writes, self._job.ledger
        asked = {"prompt": task.prompt} if made in task.namespaces.prompted else {}
        if other is not None:
            asked["instead"] = ledger.again(task, other)[made]
        fewer = task.stored is not None and stage.reads == self._job.pipeline[0].writes
        shown = {"shown": len(task.chunk.times)} if fewer else {}
        return {
            **shown,
            "kind": task.medium.kind,
            "key": task[made],
            stage.reads: task[stage.reads],
            **asked,
        }

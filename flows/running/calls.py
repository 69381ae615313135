"""What each stage is told, on whatever rung; starts nothing and knows not what runs after what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from flows.job.launch import StageCall
from flows.job.models import Model
from flows.job.precision import HalfSettings
from flows.job.prepare import Job
from flows.job.tasks import Medium, Task
from flows.pipelines import ENCODE, FRAMES, HALF_OF
from flows.planning.rungs import Rung
from stages.decode.job import DecodeJob
from stages.encode.job import EncodeJob
from stages.frames.job import FramesJob
from stages.models.card import HalfCard
from stages.models.half_job import HalfJob
from stages.process.job import told_of

HalfStage = Literal["encode", "decode"]
KEYS: Mapping[str, Callable[[Task], str]] = {
    "frames": lambda task: task.frames,
    "encode": lambda task: task.features,
    "decode": lambda task: task.caption,
}
"""Under which key lies what a stage makes of a task."""


def settings_on(model: Model, rung: Rung) -> HalfSettings:
    """How the half of a stage is run on a rung."""
    half = HALF_OF[rung.stage]
    kv = rung.kv if rung.kv == "quantized" else ""
    every = model.settings(half)
    return next(s for s in every if (s.precision, s.kv) == (rung.precision, kv))


class Calls:
    """The calls of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def frames(self, media: Sequence[tuple[Medium, list[int] | None]], rung: Rung) -> StageCall:
        """To cut of each medium these chunks; None: all of them."""
        job = self._job
        told = FramesJob(
            store=job.store.url,
            scope=job.ledger.scopes.frames,
            sampling=asdict(job.sampling),
            fit={kind: job.model.fit(kind).long_edges for kind in ("video", "image")},
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
        return self._call(FRAMES.name, told, device="cpu")

    def half(self, stage: HalfStage, batches: Sequence[Sequence[Task]], rung: Rung) -> StageCall:
        """To encode or decode these batches, all of them in one way."""
        scopes = batches[0][0].scopes
        told: EncodeJob | DecodeJob
        if stage == ENCODE.name:
            told = EncodeJob(
                **self._half(self._job.model.card.vision, rung),
                store=self._job.store.url,
                frames_scope=scopes.frames,
                scope=scopes.features,
                batches=[[self._to_encode(t) for t in b] for b in batches],
                frames_a_video=self._job.model.card.frames_a_video,
                block=rung.block,
            )
        else:
            told = DecodeJob(
                **self._half(self._job.model.card.language, rung),
                store=self._job.store.url,
                features_scope=scopes.features,
                scope=scopes.captions,
                batches=[[_to_decode(t) for t in b] for b in batches],
                max_new_tokens=self._job.config.max_new_tokens,
                kv=rung.kv,
            )
        return self._call(stage, told)

    def _to_encode(self, task: Task) -> dict[str, str]:
        seen = {"prompt": task.medium.prompt} if self._job.model.card.prompted else {}
        return _entry(task, key=task.features, frames=task.frames, **seen)

    def _half(self, card: HalfCard, rung: Rung) -> dict[str, Any]:
        model = self._job.model
        settings = settings_on(model, rung)
        return told_of(
            HalfJob(
                model=str(model.folder),
                device=self._job.device,
                dtype=settings.dtype,
                precision=settings.precision,
                attention=settings.attention,
                trust_remote_code=self._job.config.trust_remote_code,
                route=model.card.route,
                pieces=card.pieces,
                prefill=rung.prefill,
                offload=rung.offload,
            )
        )

    def _call(
        self, name: str, told: FramesJob | EncodeJob | DecodeJob, device: str = ""
    ) -> StageCall:
        log = self._job.out / "logs" / f"{name}.log"
        device = device or self._job.device
        allowed = self._job.budget.of_stage(device)
        return StageCall(name=name, arguments=told_of(told), device=device, log=log, budget=allowed)


def _to_decode(task: Task) -> dict[str, str]:
    return _entry(task, key=task.caption, features=task.features, prompt=task.medium.prompt)


def _entry(task: Task, **values: str) -> dict[str, str]:
    return {"kind": task.medium.kind, **values}

"""Says what the stages of an export are told of its model, and refuses what they could not do."""

from collections.abc import Callable
from functools import partial
from typing import Any

from artifacts.errors import UsageError
from artifacts.schema import Half, Part
from flows.job.prepare import Job
from flows.options.export_config import ExportAsked
from flows.planning.costs.export import HESSIAN_BYTES
from flows.running.samples import Captioned
from stages.export.jobs import (
    GRAPHS,
    PACKED,
    CalibrateJob,
    ExportJob,
    GraphJob,
    JudgeJob,
    check_packages,
)
from stages.process.device import device_name

EXPECTED = "expected"
"""Folder of what the original expects at each word, until the checkpoint is judged."""
LEAST_BYTES = 256 << 20
"""Bytes that are summed up at least."""


def check_graphs(kind: str) -> None:
    """Refuse graphs that cannot be made or judged here, before anything is captioned. Raises
    PenstockError."""
    check_packages()
    if GRAPHS[kind] == "int8" and device_name() != "cpu":
        raise UsageError(
            f"--to {kind} is for processors, and this machine has a GPU to judge it by",
            hint="Take --to onnx-fp16, or hide the GPU: CUDA_VISIBLE_DEVICES= penstock export …",
        )


def export_job(
    job: Job, asked: ExportAsked, recipe: dict[str, Any], parts: tuple[Part, ...], rounded: str
) -> ExportJob:
    """Return the job of the stage that writes a checkpoint in few bits. `rounded` is the folder of
    weights that were calibrated; empty: none were."""
    model = job.model
    return ExportJob(
        model=str(model.folder),
        recipe=recipe,
        folder=str(asked.work),
        kind=asked.kind,
        parts=parts,
        group=asked.group,
        calibrated=rounded,
        as_published=model.profile.as_published,
        trust_remote_code=job.config.trust_remote_code,
        files=model.files_of(model.profile.parts),
    )


def graph_job(
    job: Job, asked: ExportAsked, recipe: dict[str, Any], parts: tuple[Part, ...]
) -> GraphJob:
    """Return the job of the stage that makes graphs of these halves."""
    model, held = job.model, job.model.profile.parts
    halves: list[Half] = [part for part in parts if part != "whole"]
    return GraphJob(
        model=str(model.folder),
        recipe=recipe,
        folder=str(asked.work),
        kind=asked.kind,
        weights={half: {s: model.weights[s] for s in held[half].shards} for half in halves},
        pieces={half: list(held[half].pieces) for half in halves},
        frames_a_video=model.profile.frames_a_video,
        route=model.profile.route,
        as_published=model.profile.as_published,
        trust_remote_code=job.config.trust_remote_code,
        files=model.files_of(model.profile.parts),
    )


def calibrate_job(
    job: Job, asked: ExportAsked, parts: tuple[Part, ...], seen: Captioned, folder: str
) -> Callable[..., CalibrateJob]:
    """Return what makes of its half the job of the stage that rounds weights into a folder."""
    namespace, members = seen
    return partial(
        CalibrateJob,
        store=job.store.url,
        features_namespace=namespace,
        members=members,
        folder=folder,
        parts=parts,
        bits=PACKED[asked.kind],
        group=asked.group,
        hessian_bytes=_hessian_bytes(job),
    )


def judge_job(job: Job, asked: ExportAsked, words: Captioned) -> partial[JudgeJob]:
    """Return what makes of its half the job of the stage that reads off what it expects."""
    namespace, members = words
    folder, store = str(asked.runs / EXPECTED), job.store.url
    where = partial(JudgeJob, store=store, features_namespace=namespace, folder=folder)
    return partial(where, members=members)


def put_in(asked: ExportAsked, parts: tuple[Part, ...]) -> dict[str, Any]:
    """Return the fields of a JudgeJob whose half gets the weights of a packed checkpoint."""
    bits, rounded = PACKED[asked.kind], str(asked.work)
    return {"rounded": rounded, "parts": parts, "bits": bits, "group": asked.group}


def _hessian_bytes(job: Job) -> int:
    """Return the bytes that may be summed up for one layer: no more than leave room for the
    rest."""
    return min(HESSIAN_BYTES, max(LEAST_BYTES, job.budget.of_stage(job.device) // 4))

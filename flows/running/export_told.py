"""Says what the stages of an export are told of its model, and refuses what they could not do."""

from typing import Any

from artifacts.errors import UsageError
from artifacts.schema import Part
from flows.job.prepare import Job
from flows.planning.costs.export import HESSIAN_BYTES
from stages.export.graph_job import GRAPHS, check_packages
from stages.process.device import device_name

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


def model_of(job: Job) -> dict[str, Any]:
    """Return the fields about the model that every job has which writes a checkpoint."""
    model = job.model
    return {
        "model": str(model.folder),
        "as_published": model.profile.as_published,
        "trust_remote_code": job.config.trust_remote_code,
        "files": model.files_of(model.profile.parts).to_json(),
    }


def halves(job: Job, parts: tuple[Part, ...]) -> dict[str, Any]:
    """Return what the stage that makes graphs is told of each half."""
    model, held = job.model, job.model.profile.parts
    return {
        "weights": {part: {s: model.weights[s] for s in held[part].shards} for part in parts},
        "pieces": {part: list(held[part].pieces) for part in parts},
        "frames_a_video": model.profile.frames_a_video,
        "route": model.profile.route,
    }


def hessian_bytes(job: Job) -> int:
    """Return the bytes that may be summed up for one layer: no more than leave room for the
    rest."""
    return min(HESSIAN_BYTES, max(LEAST_BYTES, job.budget.of_stage(job.device) // 4))

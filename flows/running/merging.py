"""Starts a process that merges an adapter into the model of a job. The export then uses the merged
model."""

from typing import Any

from flows.checkpoint.adapters import as_published_fields, read_noted_adapter
from flows.checkpoint.model_files import ModelDigests
from flows.checkpoint.models import digests_in
from flows.console.display import Display
from flows.job.prepare import Job
from flows.ledger.weights import fetch_parts
from flows.machine.launch import StageCall, run_with_restarts
from flows.options.export_config import ExportRequest
from flows.running.run import LauncherMaker
from stages.export.jobs import MergeJob
from stages.models.adapters.reading import LoraAdapter

MAX_BYTES = 1 << 30
"""Memory for merging, in bytes above the imports. Parts of tensors take 100 MB, the model without
weights another 100 MB, and the headers of 100,000 tensors 300 MB."""


def source_of(job: Job) -> dict[str, Any]:
    """Return the key fields of a job's model: its digests, and whether it runs as published."""
    source = [job.model.digests[part] for part in sorted(job.model.digests)]
    return {"source": source, **as_published_fields(job.model.profile.as_published)}


def adapter_of(job: Job, request: ExportRequest) -> tuple[LoraAdapter, ModelDigests]:
    """Return the adapter to merge, and the digests of its files. Raises PenstockError."""
    files = ModelDigests(digests_in(job.store))
    return read_noted_adapter(request.adapter, files), files


def merge(
    job: Job,
    request: ExportRequest,
    adapter: LoraAdapter,
    recipe: dict[str, Any],
    files: ModelDigests,
    display: Display,
    make_launcher: LauncherMaker,
) -> None:
    """Write the merged model, or its missing shards. `files` are the adapter's. Raises
    PenstockError; written shards stay."""

    fetch_parts(job.model, list(job.model.profile.parts), display)
    merge_job = MergeJob(
        model=str(job.model.folder),
        adapter=str(adapter.folder),
        recipe=recipe,
        folder=str(request.merged),
        as_published=job.model.profile.as_published,
        trust_remote_code=job.config.trust_remote_code,
        files=job.model.files_of(job.model.profile.parts).with_others(files.files),
    )
    call = StageCall(
        name="merge",
        job=merge_job,
        device="cpu",
        log=request.runs / "logs" / "merge.log",
        budget=MAX_BYTES,
    )
    try:
        run_with_restarts(make_launcher(display.on_event), call)
    finally:
        display.close()

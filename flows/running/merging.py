"""Starts a process that merges an adapter into the model of a job. The merged model is then
exported.
"""

from dataclasses import replace
from typing import Any

from artifacts.paths import folder_named
from flows.checkpoint.adapters import adapter_digest, adapter_noted, way_of, way_recipe
from flows.checkpoint.model_files import ModelDigests
from flows.checkpoint.models import digests_in
from flows.console.display import Display
from flows.job.prepare import Job
from flows.ledger.weights import fetch_parts
from flows.machine.launch import StageCall, run_with_restarts
from flows.options.commands import RunOptions
from flows.options.export_config import ExportRequest
from flows.running.run import LauncherMaker
from stages.export.jobs import MergeJob
from stages.models.adapters.reading import LoraAdapter, read_adapter
from stages.process.events import Event, StageNotes
from stages.process.job import job_fields

MOST_BYTES = 1 << 30
"""Bytes that merging may take above its imports: pieces of tensors take 100 MB, the model without
weights as much, and what is said of 100,000 tensors takes 300 MB."""


def source_of(job: Job) -> dict[str, Any]:
    """Return what decides a job's model: its numbers, and the way that it is run."""
    source = [job.model.digests[part] for part in sorted(job.model.digests)]
    return {"source": source, **way_recipe(job.model.profile.as_published)}


def as_adapted(config: RunOptions, name: str) -> RunOptions:
    """Return the run that looks at a model into which the adapter in a folder is merged: as asked,
    else as the adapter was trained. Raises UsageError or EnvironmentFault for what is no
    adapter."""
    adapter = read_adapter(folder_named(name, "adapter"))
    return replace(config, as_published=way_of(config.as_published, adapter))


def adapter_of(job: Job, asked: ExportRequest) -> tuple[LoraAdapter, ModelDigests]:
    """Return the adapter that is merged, and what notes its files. Raises PenstockError."""
    files = ModelDigests(digests_in(job.store))
    return adapter_noted(asked.adapter, files), files


def merged_of(job: Job, adapter: LoraAdapter, files: ModelDigests) -> dict[str, Any]:
    """Return what decides those of the model that an adapter was merged into."""
    return {**source_of(job), "adapter": adapter_digest(adapter, files)}


def merge(
    job: Job,
    asked: ExportRequest,
    adapter: LoraAdapter,
    recipe: dict[str, Any],
    files: ModelDigests,
    display: Display,
    make_launcher: LauncherMaker,
) -> None:
    """Write the merged model, or what is not there yet of it. `files` are the adapter's. Raises
    PenstockError; what is written stays."""

    def listen(name: str, event: Event) -> None:
        if isinstance(event, StageNotes) and "shards" in event.values:
            display.stage(name, event.values["shards"], event.values["there"])
        display.listen(name, event)

    fetch_parts(job.model, list(job.model.profile.parts), display)
    told = MergeJob(
        model=str(job.model.folder),
        adapter=str(adapter.folder),
        recipe=recipe,
        folder=str(asked.merged),
        as_published=job.model.profile.as_published,
        trust_remote_code=job.config.trust_remote_code,
        files=job.model.files_of(job.model.profile.parts).with_others(files.files),
    )
    call = StageCall(
        name="merge",
        arguments=job_fields(told),
        device="cpu",
        log=asked.runs / "logs" / "merge.log",
        budget=MOST_BYTES,
    )
    try:
        run_with_restarts(make_launcher(listen), call)
    finally:
        display.close()

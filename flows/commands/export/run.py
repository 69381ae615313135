"""Runs an export, from its configuration to an evaluated checkpoint.

1. If an adapter is given, a process merges it into the model of the job. The export then uses the
   merged model.
2. The original model captions the samples as in any run, so that stored captions are reused.
3. The new checkpoint is written next to its final path.
4. It is compared with the original on the same samples, and moved to its path if it passes.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from artifacts.digests import digest_of
from artifacts.disk.json_records import read_record
from artifacts.disk.json_shapes import Json
from artifacts.errors import ModelChanged, UsageError
from artifacts.schema import HalfName, Part
from flows.commands.export import EXPORTED, EXPORTED_VECTORS, EXPORTS
from flows.commands.export import GRAPHS as GRAPH_EXPORTS
from flows.commands.export.costs import HESSIAN_BYTES
from flows.commands.export.options import EXPORTED as EXPORTED_RUN
from flows.commands.export.options import NATIVE, ExportConfig, check_export_packages
from flows.commands.export.result import (
    Exported,
    awaits_acceptance,
    is_being_placed,
    move_into_place,
    note_parity,
    placed_before,
    refuse_foreign_folder,
    remove_unfinished,
)
from flows.commands.export.samples import (
    Captioned,
    ExportSample,
    captioned_of,
    features_job,
    halves_of,
    media_in,
    samples_of,
    tasks_by_identity,
)
from flows.core.checkpoint.adapters import (
    adapter_digest,
    adapter_notes,
    as_published_fields,
    read_noted_adapter,
)
from flows.core.checkpoint.model_digests import ModelDigests
from flows.core.checkpoint.models import digests_in
from flows.core.checkpoint.weights import fetch_parts
from flows.core.console.display import Display
from flows.core.job.prepare import Job
from flows.core.job.replan import replanned_once
from flows.core.machine.launch import DirectLauncher, StageCall, run_with_restarts
from flows.core.options.commands import RunOptions
from flows.core.options.precision import TORCH
from flows.core.pipelines import Pipeline, makes_vectors
from flows.execution.pipeline_runner import PipelineRunner
from flows.execution.run import LauncherMaker, prepared
from flows.execution.run_observer import OnBegin, RunObserver
from flows.execution.stage_calls import StageCallBuilder
from stages.export import (
    CALIBRATE,
    COMPARE,
    GRAPHS,
    JUDGE,
    PACKED,
    STAGE,
    TRACE,
    CalibrateJob,
    ExportJob,
    GraphJob,
    JudgeJob,
    MergeJob,
)
from stages.export.parity import Figures, Rounding, TextFigures, VectorFigures, verdict_in
from stages.models.adapter_modules import LoraAdapter
from stages.models.graphs.sessions import ONNX
from stages.process.device import device_name
from stages.process.stage_spec import StageSpec

MAX_BYTES = 1 << 30
"""Memory for merging, in bytes above the imports. Parts of tensors take 100 MB, the model without
weights another 100 MB, and the headers of 100,000 tensors 300 MB."""


def source_of(job: Job) -> dict[str, Json]:
    """Return the key fields of a job's model: its digests, and whether it runs as published."""
    source = [job.model.digests[part] for part in sorted(job.model.digests)]
    return {"source": source, **as_published_fields(job.model.profile.as_published)}


def recipe_of(job: Job, request: ExportConfig, source: Mapping[str, Json]) -> dict[str, Json]:
    """Return the key fields of the checkpoint, without the samples. `source` are those of the model
    with its adapter."""
    return {
        **source,
        "kind": request.to,
        "parts": list(request.parts(job.model.profile.route)),
        "group": request.group if request.packed else 0,
        "calibrated": request.packed and request.calibrated,
        "samples": request.samples,
        **({"answer_blank": blank} if (blank := job.model.profile.answer_blank) else {}),
    }


def refuse_other_checkpoint(request: ExportConfig, job: Job) -> None:
    """Check for a dry run that the folder holds no other checkpoint. Weights that it does not read
    count as those of the checkpoint. Raises UsageError."""
    source, placed = source_of(job), verdict_in(request.folder)
    if request.adapter:
        files = ModelDigests(digests_in(job.store))
        source["adapter"] = adapter_digest(read_noted_adapter(request.adapter, files), files)
    if not job.model.read and placed is not None:
        source["source"] = placed.recipe.get("source")
    placed_before(request.folder, recipe_of(job, request, source))


def merge(
    job: Job,
    request: ExportConfig,
    adapter: LoraAdapter,
    recipe: dict[str, Json],
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


EXPECTED = "expected"
"""Folder of the original's logits at each token, kept until the checkpoint is evaluated."""
MIN_HESSIAN_BYTES = 256 << 20
"""Lower limit of the memory for Hessians, in bytes."""


def export_job(
    job: Job, request: ExportConfig, recipe: dict[str, Json], parts: tuple[Part, ...], rounded: str
) -> ExportJob:
    """Return the job that writes a quantized checkpoint. `rounded` is the folder of calibrated
    weights, or empty."""
    model = job.model
    return ExportJob(
        model=str(model.folder),
        recipe=recipe,
        folder=str(request.work),
        kind=request.to,
        parts=parts,
        group=request.group,
        calibrated=rounded,
        as_published=model.profile.as_published,
        trust_remote_code=job.config.trust_remote_code,
        files=model.files_of(model.profile.parts),
    )


def graph_job(
    job: Job, request: ExportConfig, recipe: dict[str, Json], parts: tuple[Part, ...]
) -> GraphJob:
    """Return the job that makes graphs of these halves."""
    model, held = job.model, job.model.profile.parts
    halves: list[HalfName] = [part for part in parts if part != "whole"]
    return GraphJob(
        model=str(model.folder),
        recipe=recipe,
        folder=str(request.work),
        kind=request.to,
        weights={half: {s: model.weights[s] for s in held[half].shards} for half in halves},
        extra_modules={half: list(held[half].extra_modules) for half in halves},
        frames_per_video=model.profile.frames_per_video,
        route=model.profile.route,
        as_published=model.profile.as_published,
        trust_remote_code=job.config.trust_remote_code,
        files=model.files_of(model.profile.parts),
    )


def calibrate_job(
    job: Job, request: ExportConfig, parts: tuple[Part, ...], seen: Captioned, folder: str
) -> Callable[..., CalibrateJob]:
    """Return a function that builds, from its half, the job that writes calibrated weights to a
    folder."""
    namespace, items = seen
    room = job.budget.of_stage(job.device) // 4  # leaves room for everything else of a layer
    return partial(
        CalibrateJob,
        store=job.store.url,
        features_namespace=namespace,
        members=items,
        folder=folder,
        parts=parts,
        bits=PACKED[request.to],
        group=request.group,
        hessian_bytes=min(HESSIAN_BYTES, max(MIN_HESSIAN_BYTES, room)),
    )


def judge_job(job: Job, request: ExportConfig, captioned: Captioned) -> partial[JudgeJob]:
    """Return a function that builds, from its half, the job that records the half's logits."""
    namespace, items = captioned
    folder, store = str(request.runs / EXPECTED), job.store.url
    return partial(
        JudgeJob, store=store, features_namespace=namespace, folder=folder, members=items
    )


def export(
    config: RunOptions,
    request: ExportConfig,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> Exported:
    """Write the requested checkpoint of the configuration's model. It is evaluated on the
    configuration's sources, or without sources on the model's stored records. `on_begin` is called
    for the run of the original and for the evaluation. Raises PenstockError; written files stay."""

    def attempt() -> Exported:
        refuse_foreign_folder(request)
        try:
            return _Export(config, request, display, make_launcher, on_begin).run()
        except ModelChanged:
            remove_unfinished(request)
            raise

    return replanned_once(attempt, display.print_line)


class _Export:
    """One running export."""

    def __init__(
        self,
        config: RunOptions,
        request: ExportConfig,
        display: Display,
        make_launcher: LauncherMaker,
        on_begin: OnBegin | None,
    ) -> None:
        self._config = replace(config, out=str(request.runs / NATIVE), limit=request.samples)
        self._request = request
        self._display = display
        self._observer = partial(RunObserver, display, on_begin)
        self._make_launcher = make_launcher
        self._source: dict[str, Json] = {}
        """Key fields of the model with its merged adapter; empty: the model alone."""
        self._parts: tuple[Part, ...] = ()
        self._makes_vectors = False
        self._samples: list[ExportSample] = []
        self._figures = Figures()

    def run(self) -> Exported:
        kind = self._request.to
        if GRAPHS.get(kind) == "int8" and device_name() != "cpu":
            raise UsageError(
                f"--to {kind}: cannot be evaluated on this machine (CPU graphs, but it has a GPU)",
                hint="Give --to onnx-fp16, or hide the GPU: "
                "CUDA_VISIBLE_DEVICES= penstock export …",
            )
        check_export_packages(self._request)
        result = self._merge_adapter() if self._request.adapter else None
        result = result or self._export()
        if (
            self._request.adapter and result.accepted
        ):  # the merged model is as large as the original
            shutil.rmtree(self._request.merged, ignore_errors=True)
        return result

    @property
    def _pipelines(self) -> tuple[Pipeline, ...]:
        return GRAPH_EXPORTS if self._request.graphs else EXPORTS

    def _merge_adapter(self) -> Exported | None:
        """Merge the adapter, and continue with the merged model. Return the checkpoint if that
        model was exported before."""
        request, observer = self._request, self._observer()
        with prepared(self._config, observer, self._make_launcher, *self._pipelines) as opened:
            job, _ = opened
            files = ModelDigests(digests_in(job.store))
            adapter = read_noted_adapter(request.adapter, files)
            for note in adapter_notes(adapter, job.model.checkpoint, job.model.weights):
                self._display.print_line(note)
            self._source = {**source_of(job), "adapter": adapter_digest(adapter, files)}
            if (done := self._finished_before(job)) is not None:
                return done
            merge(job, request, adapter, self._source, files, self._display, self._make_launcher)
        self._config = replace(self._config, model=str(request.merged), revision=None)
        return None

    def _finished_before(self, job: Job) -> Exported | None:
        """Return the checkpoint if it needs no work: it is in its place, or ready to be moved
        there."""
        self._parts = self._request.parts(job.model.profile.route)
        recipe = self._recipe(job)
        if (done := placed_before(self._request.folder, recipe)) is not None:
            return done
        if not awaits_acceptance(self._request, recipe):
            return None
        return move_into_place(self._request, resumed=is_being_placed(self._request))

    def _export(self) -> Exported:
        observer = self._observer()
        with prepared(self._config, observer, self._make_launcher, *self._pipelines) as opened:
            job, launcher = opened
            self._makes_vectors = is_dual = makes_vectors(job.pipeline)
            if (done := self._finished_before(job)) is not None:
                return done
            with observer.pipeline_for_job(job, launcher, "exporting into") as runner:
                if is_dual:
                    runner.compute_records()
                elif job.files:
                    runner.run()
                with runner.keep_running():
                    self._write_checkpoint(job, runner)
        if not self._request.packed:
            self._evaluate()
        frames = sum(len(sample.task.chunk.times) for sample in self._samples)
        note_parity(self._request.work, self._recipe(job), self._figures, frames)
        shutil.rmtree(self._request.runs / EXPECTED, ignore_errors=True)
        return move_into_place(self._request)

    def _recipe(self, job: Job) -> dict[str, Json]:
        return recipe_of(job, self._request, self._source or source_of(job))

    def _write_checkpoint(self, job: Job, runner: PipelineRunner) -> None:
        """Write the checkpoint, and record the original's logits on the samples."""
        request, media = self._request, job.media if job.files else media_in(job)
        recipe, rounded = self._recipe(job), ""
        calibrated = request.packed and request.calibrated
        samples = samples_of(job, media, request.samples, min_count=1 + calibrated)
        if calibrated:
            seen, samples, note = halves_of(samples)
            if note:
                self._display.print_line(note)
            recipe["samples"] = digest_of([sample.task["captions"] for sample in seen])
            rounded = str(request.runs / f"rounded-{digest_of(recipe)[:12]}")
            make = calibrate_job(job, request, self._parts, captioned_of(seen, {}), rounded)
            notes = self._run_one_shot(job, runner, CALIBRATE, make, len(seen))
            rounding = Rounding(to_nearest=notes.get("rounded_to_nearest", {}))
            self._figures = replace(self._figures, rounding=rounding)
        self._samples = samples
        # Runs before the graphs: they link to the weights, which changes the weights' stamps.
        if self._changes_text:
            self._expected_logits(job, runner)
        how = (recipe, self._parts)
        if request.graphs:
            notes = self._run_one_shot(job, runner, TRACE, partial(graph_job, job, request, *how))
            if (texts := notes.get("figures", {}).get("texts")) is not None:
                self._figures = replace(self._figures, texts=read_record(VectorFigures, texts))
        else:
            self._run_one_shot(job, runner, STAGE, partial(export_job, job, request, *how, rounded))
        if request.packed:
            # The original's half gets the weights of the packed checkpoint.
            self._compare_logits(
                job,
                runner,
                rounded=str(request.work),
                parts=self._parts,
                bits=PACKED[request.to],
                group=request.group,
            )

    @property
    def _changes_text(self) -> bool:
        """Return whether the export can change text: it covers the language half, or graphs of the
        vision half."""
        return not self._makes_vectors if self._request.graphs else self._parts != ("vision",)

    def _evaluate(self) -> None:
        """Evaluate the checkpoint by its own results on the samples."""
        observer = self._observer()
        out, model = str(self._request.runs / EXPORTED_RUN), str(self._request.work)
        backend = ONNX if self._request.graphs else TORCH
        config = replace(self._config, model=model, revision=None, out=out, vision_backend=backend)
        pipelines = (EXPORTED, EXPORTED_VECTORS)
        with (
            prepared(config, observer, self._make_launcher, *pipelines) as (job, launcher),
            observer.pipeline_for_job(job, launcher, "judging in") as runner,
        ):
            if "vision" in self._parts:
                runner.compute_records()
            with runner.keep_running():
                if "vision" in self._parts:
                    make = partial(features_job, self._samples, job)
                    notes = self._run_one_shot(job, runner, COMPARE, make, len(self._samples))
                    features = read_record(VectorFigures, notes["features"])
                    self._figures = replace(self._figures, features=features)
                if self._changes_text:
                    self._compare_logits(job, runner)

    def _compare_logits(self, job: Job, runner: PipelineRunner, **how: Any) -> None:
        """Compare the exported half's logits with those of the original."""
        notes = self._expected_logits(job, runner, compared=True, **how)
        agreement = read_record(TextFigures, notes["agreement"])
        self._figures = replace(self._figures, text=agreement)

    def _expected_logits(self, job: Job, runner: PipelineRunner, **how: Any) -> dict[str, Any]:
        """Run a half on the samples with this job's features, and record its logits."""
        changed = "captions" not in job.ledger.variant.of and "vision" in self._parts
        captioned = captioned_of(self._samples, tasks_by_identity(job) if changed else {})
        make = partial(judge_job(job, self._request, captioned), **how)
        return self._run_one_shot(job, runner, JUDGE, make, len(self._samples))

    def _run_one_shot(
        self,
        job: Job,
        runner: PipelineRunner,
        stage: StageSpec,
        make: Callable[..., Any],
        total: int = 1,
    ) -> dict[str, Any]:
        """Run a stage without media, and return its notes."""
        call = partial(StageCallBuilder(job).one_shot_call, stage, make)
        return runner.stages.run_once(stage, call, total=total).notes

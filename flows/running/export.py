"""Runs an export, from its configuration to an evaluated checkpoint.

The original model first captions the samples as in any run, so that stored captions are reused. The
new checkpoint is then written next to its final path. It is compared with the original on the same
samples, and moved to its path if it passes.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from artifacts.errors import ModelChanged, UsageError
from artifacts.keys import digest_of
from artifacts.schema import Half, Part
from flows.checkpoint.adapters import way_notes
from flows.console.display import Display
from flows.job.prepare import Job
from flows.job.replanning import replanned_once
from flows.machine.launch import DirectLauncher
from flows.options.commands import RunOptions
from flows.options.export_config import EXPORTED as EXPORTED_RUN
from flows.options.export_config import NATIVE, ExportRequest
from flows.options.model import TORCH
from flows.pipelines import EXPORTED, EXPORTED_VECTORS, EXPORTS, Pipeline, makes_vectors
from flows.pipelines import GRAPHS as GRAPH_EXPORTS
from flows.planning.costs.export import HESSIAN_BYTES
from flows.results.export_result import (
    Exported,
    forget_begun,
    note_parity,
    placed_before,
    put_into_place,
    refuse_foreign_folder,
    was_judged,
)
from flows.running.calls import StageCallBuilder
from flows.running.merging import adapter_of, as_adapted, merge, merged_of, source_of
from flows.running.pipeline_runner import PipelineRunner
from flows.running.run import LauncherMaker, prepared
from flows.running.run_observer import OnBegin, RunObserver
from flows.running.samples import (
    Captioned,
    ExportSample,
    by_place,
    captioned_of,
    features_job,
    media_in,
    samples_of,
)
from stages.export import CALIBRATE, COMPARE, JUDGE, STAGE, TRACE
from stages.export.jobs import (
    GRAPHS,
    PACKED,
    CalibrateJob,
    ExportJob,
    GraphJob,
    JudgeJob,
    check_packages,
)
from stages.models.graphs.providers import ONNX
from stages.process.device import device_name
from stages.process.stage import StageSpec

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
    job: Job, asked: ExportRequest, recipe: dict[str, Any], parts: tuple[Part, ...], rounded: str
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
    job: Job, asked: ExportRequest, recipe: dict[str, Any], parts: tuple[Part, ...]
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
    job: Job, asked: ExportRequest, parts: tuple[Part, ...], seen: Captioned, folder: str
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


def judge_job(job: Job, asked: ExportRequest, words: Captioned) -> partial[JudgeJob]:
    """Return what makes of its half the job of the stage that reads off what it expects."""
    namespace, members = words
    folder, store = str(asked.runs / EXPECTED), job.store.url
    where = partial(JudgeJob, store=store, features_namespace=namespace, folder=folder)
    return partial(where, members=members)


def put_in(asked: ExportRequest, parts: tuple[Part, ...]) -> dict[str, Any]:
    """Return the fields of a JudgeJob whose half gets the weights of a packed checkpoint."""
    bits, rounded = PACKED[asked.kind], str(asked.work)
    return {"rounded": rounded, "parts": parts, "bits": bits, "group": asked.group}


def _hessian_bytes(job: Job) -> int:
    """Return the bytes that may be summed up for one layer: no more than leave room for the
    rest."""
    return min(HESSIAN_BYTES, max(LEAST_BYTES, job.budget.of_stage(job.device) // 4))


def export(
    config: RunOptions,
    asked: ExportRequest,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> Exported:
    """Write the checkpoint that is asked for of the configuration's model. It is judged by the
    configuration's sources, or without any by what the store has of the model. `on_begin` is as
    `caption` has it, of the run that looks at the original and of the one that judges. Raises
    PenstockError; what is written stays."""

    def attempt() -> Exported:
        refuse_foreign_folder(asked)
        try:
            return _Export(config, asked, display, make_launcher, on_begin).run()
        except ModelChanged:
            forget_begun(asked)
            raise

    return replanned_once(attempt, display.say)


class _Export:
    """One running export."""

    def __init__(
        self,
        config: RunOptions,
        asked: ExportRequest,
        display: Display,
        make_launcher: LauncherMaker,
        on_begin: OnBegin | None,
    ) -> None:
        self._config = replace(config, out=str(asked.runs / NATIVE), limit=asked.samples)
        self._asked = asked
        self._display = display
        self._watch = partial(RunObserver, display, on_begin)
        self._make_launcher = make_launcher
        self._source: dict[str, Any] = {}
        """The model and the adapter that it was merged with; empty: the model as it is."""
        self._parts: tuple[Part, ...] = ()
        self._dual = False
        self._samples: list[ExportSample] = []
        self._figures: dict[str, Any] = {}

    def run(self) -> Exported:
        if self._asked.graphs:
            check_graphs(self._asked.kind)
        result = self._merged() if self._asked.adapter else None
        result = result or self._exported()
        if self._asked.adapter and result.accepted:  # it is as large as the original
            shutil.rmtree(self._asked.merged, ignore_errors=True)
        return result

    @property
    def _pipelines(self) -> tuple[Pipeline, ...]:
        return GRAPH_EXPORTS if self._asked.graphs else EXPORTS

    def _merged(self) -> Exported | None:
        """Go on with the model that the adapter was merged into. Where that was exported before,
        return the checkpoint."""
        asked, watch = self._asked, self._watch()
        way, self._config = self._config.as_published, as_adapted(self._config, asked.adapter)
        with prepared(self._config, watch, self._make_launcher, *self._pipelines) as found:
            job, _ = found
            adapter, files = adapter_of(job, asked)
            for note in way_notes(way, adapter, job.model.folder):
                self._display.say(note)
            self._source = merged_of(job, adapter, files)
            if (done := self._done(job)) is not None:
                return done
            merge(job, asked, adapter, self._source, files, self._display, self._make_launcher)
        self._config = replace(self._config, model=str(asked.merged), revision=None)
        return None

    def _done(self, job: Job) -> Exported | None:
        """Return the checkpoint if it needs no work: it is in its place, or waits for it."""
        self._parts = self._asked.parts(job.model.profile.route)
        recipe = self._recipe(job)
        if (done := placed_before(self._asked.folder, recipe)) is not None:
            return done
        return put_into_place(self._asked) if was_judged(self._asked, recipe) else None

    def _exported(self) -> Exported:
        watch = self._watch()
        with prepared(self._config, watch, self._make_launcher, *self._pipelines) as found:
            job, launcher = found
            self._dual = dual = makes_vectors(job.pipeline)
            if (done := self._done(job)) is not None:
                return done
            with watch.working(job, launcher, "exporting into") as (sequence, _, _):
                if dual:
                    sequence.fill()
                elif job.files:
                    sequence.run()
                with sequence.going_on():
                    self._written(job, sequence)
        if not self._asked.packed:
            self._judged()
        frames = sum(len(sample.task.chunk.times) for sample in self._samples)
        note_parity(self._asked.work, self._recipe(job), self._figures, frames)
        shutil.rmtree(self._asked.runs / EXPECTED, ignore_errors=True)
        return put_into_place(self._asked)

    def _recipe(self, job: Job) -> dict[str, Any]:
        """Return what decides the bytes of the checkpoint, but the samples."""
        asked = self._asked
        return {
            **(self._source or source_of(job)),
            "kind": asked.kind,
            "parts": list(self._parts),
            "group": asked.group if asked.packed else 0,
            "calibrated": asked.packed and asked.calibrated,
            "samples": asked.samples,
        }

    def _written(self, job: Job, sequence: PipelineRunner) -> None:
        """Write the checkpoint, and note what the original expects of the samples."""
        asked, media = self._asked, job.media if job.files else media_in(job)
        recipe, rounded = self._recipe(job), ""
        samples = samples_of(job, media, asked.samples, least=1 + recipe["calibrated"])
        if recipe["calibrated"]:
            seen, samples = samples[::2], samples[1::2]  # not judged by what it was fitted to
            recipe["samples"] = digest_of([sample.task["captions"] for sample in seen])
            rounded = str(asked.runs / f"rounded-{digest_of(recipe)[:12]}")
            make = calibrate_job(job, asked, self._parts, captioned_of(seen, {}), rounded)
            notes = self._once(job, sequence, CALIBRATE, make, len(seen))
            self._figures["rounding"] = {"to_nearest": notes.get("rounded_to_nearest", {})}
        self._samples = samples
        if self._speaks:  # first: graphs go with links to the weights, which changes their stamps
            self._expected(job, sequence)
        how = (recipe, self._parts)
        if asked.graphs:
            notes = self._once(job, sequence, TRACE, partial(graph_job, job, asked, *how))
            self._figures |= notes.get("figures", {})
        else:
            self._once(job, sequence, STAGE, partial(export_job, job, asked, *how, rounded))
        if asked.packed:
            self._agree(job, sequence, **put_in(asked, self._parts))

    @property
    def _speaks(self) -> bool:
        """Return whether what is said may be otherwise: by what decodes, or by graphs that see."""
        return not self._dual if self._asked.graphs else self._parts != ("vision",)

    def _judged(self) -> None:
        """Judge the checkpoint by what it makes of the samples itself."""
        watch = self._watch()
        out, model = str(self._asked.runs / EXPORTED_RUN), str(self._asked.work)
        backend = ONNX if self._asked.graphs else TORCH
        config = replace(self._config, model=model, revision=None, out=out, vision_backend=backend)
        pipelines = (EXPORTED, EXPORTED_VECTORS)
        with (
            prepared(config, watch, self._make_launcher, *pipelines) as (job, launcher),
            watch.working(job, launcher, "judging in") as (sequence, _, _),
        ):
            if "vision" in self._parts:
                sequence.fill()
            with sequence.going_on():
                if "vision" in self._parts:
                    make = partial(features_job, self._samples, job)
                    notes = self._once(job, sequence, COMPARE, make, len(self._samples))
                    self._figures["features"] = notes["features"]
                if self._speaks:
                    self._agree(job, sequence)

    def _agree(self, job: Job, sequence: PipelineRunner, **how: Any) -> None:
        """Find out how far what a half in few bits expects is from what the original does."""
        self._figures["text"] = self._expected(job, sequence, compared=True, **how)["agreement"]

    def _expected(self, job: Job, sequence: PipelineRunner, **how: Any) -> dict[str, Any]:
        """Have a half judge the samples, with the features that this job has."""
        changed = "captions" not in job.ledger.namespaces.of and "vision" in self._parts
        words = captioned_of(self._samples, by_place(job) if changed else {})
        make = partial(judge_job(job, self._asked, words), **how)
        return self._once(job, sequence, JUDGE, make, len(self._samples))

    def _once(
        self,
        job: Job,
        sequence: PipelineRunner,
        stage: StageSpec,
        make: Callable[..., Any],
        total: int = 1,
    ) -> dict[str, Any]:
        """Run a stage that looks at no media, and return its notes."""
        call = partial(StageCallBuilder(job).once, stage, make)
        return sequence.once.run(stage, call, total=total).notes

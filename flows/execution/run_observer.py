"""Reports stage events to the console and the run record. Starts no stage."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any, get_args

from artifacts.digests import digest_of
from artifacts.errors import EnvironmentFault
from artifacts.records.claims import refuse_unclaimable
from artifacts.schema import HalfName
from flows.core.checkpoint.weights import fetch_parts
from flows.core.console.display import COUNTS, Display, StageStart
from flows.core.console.lines import size
from flows.core.job.away import mounts_now
from flows.core.job.plan_record import RungRecord
from flows.core.job.prepare import Job
from flows.core.job.record_notes import note_namespaces, one_shot_namespaces
from flows.core.job.summary import noun_of, summary
from flows.core.machine.budget import WithinBudget
from flows.core.machine.fan_out import FanOutLauncher
from flows.core.machine.launch import Launcher
from flows.core.machine.leases import Lease, leased
from flows.core.media.generated_files import GeneratedFiles
from flows.core.options.trained_half import LearnedOptions
from flows.core.pipelines import STAGES
from flows.core.plan.choose import unplanned
from flows.core.plan.ladder import Ladder
from flows.core.plan.plan import ladder_of
from flows.execution.pipeline_runner import PipelineRunner
from flows.execution.stage_loop import StageLoop
from flows.execution.stage_runner import StageRunner
from flows.outputs.existing import existing_outputs, lost_notes, output_paths, replaced_line
from flows.outputs.folder.owners import take
from flows.outputs.folder.run_lock import only_run_in
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.run_read import history_in, same_work_in
from flows.outputs.run_status import seconds_left, stages_of
from flows.outputs.write import failure_of, media_paths_of, write_captions
from stages import summarize, tune
from stages.process.events import Answered, Event, Failed, MemorySample, StageNotes, Total
from stages.process.stage_spec import CHUNK


@contextlib.contextmanager
def hold_lease(job: Job) -> Iterator[Lease]:
    """Hold a lease on the namespaces that the job needs, and store notes about them. Other
    processes then delete none of these records. Raises EnvironmentFault, also if the work of a
    stage cannot be claimed."""
    record_sets = [job.ledger[stage.writes].record_sets[0] for stage in job.pipeline[1:]]
    refuse_unclaimable(job.store, [job.ledger.records.media, *record_sets])
    namespaces = [namespace for variant in job.ledger.variants for namespace in variant.of.values()]
    namespaces += one_shot_namespaces(job)
    media = (medium.digest for medium in job.media)
    with leased(job.store, list(dict.fromkeys(namespaces)), job.out, media) as lease:
        note_namespaces(job)
        yield lease


class LiveCaptions:
    """Writes the captions of a run while they are made, so that people can read and correct the
    first ones meanwhile. That takes at most one part in SHARE of the time."""

    SHARE = 20

    def __init__(self, job: Job, writer: RecordWriter) -> None:
        self._job, self._writer = job, writer
        self._made = 0
        self._write_at = 0.0

    def write(self) -> None:
        """Write `captions.jsonl` and its count, if there are new captions and it is time."""
        began, ledger = time.monotonic(), self._job.ledger
        if began < self._write_at or self._writer.is_gone:
            return
        ledger.refresh()
        captions = len(ledger["captions"].keys())
        if captions != self._made:
            self._made = captions
            with contextlib.suppress(EnvironmentFault):  # a full disk, which the stage reports
                written = write_captions(self._job)
                self._writer.record.captions = sum(written.values())
                self._writer.write(force=True)
        self._write_at = began + self.SHARE * (time.monotonic() - began)


def launcher_for(job: Job, launcher: Launcher, warn: Callable[[str], None]) -> Launcher:
    """Return a launcher that keeps each device of a job within its budget."""
    budgeted = {
        device: WithinBudget(launcher, replace(job.budget, device=device), job.config, warn)
        for device in job.devices
    }
    if len(budgeted) == 1:
        return budgeted[job.device]
    return FanOutLauncher(launcher, budgeted, warn)


def job_keys(job: Job) -> list[str]:
    """Return a key for each content and prompt of a job, which covers all variants that it
    accepts."""
    kind = job.pipeline[-1].writes
    variants = sorted({variant.of.get(kind, "") for variant in job.ledger.variants})
    of_prompt = cache(lambda prompt: digest_of([variants, prompt])[:16])
    return [f"{medium.digest[:16]}-{of_prompt(medium.prompt)}" for medium in job.media]


def _is_first(job: Job, stage: str) -> bool:
    """Return whether a stage reads the files of a job, and finds their chunks meanwhile."""
    return stage == job.pipeline[0].name


SHOWN_STAGES = ("frames", "encode")
"""Stages whose latest file is noted in the record."""
LOOK_UP_SHARE = 100
OnBegin = Callable[[Job, RecordWriter], None]


class RunObserver:
    """Reports stage events to the console and the run record."""

    def __init__(
        self, display: Display, on_begin: OnBegin | None = None, command: str = ""
    ) -> None:
        """`command` names the command that owns the output folder; empty: it is no such folder."""
        self.display = display
        self._command = command
        self._on_begin = on_begin
        self._job: Job | None = None
        self._writer: RecordWriter | None = None
        self._ladder: Ladder | None = None
        self._look_up_at: dict[str, float] = {}
        """Stage → when its latest file is looked up next."""
        self._shown_seconds: dict[str, float] = {}
        """Stage → seconds that were printed of its work."""
        self._names: dict[str, str] = {}
        """Digest of a medium → its name. Filled at the first failure, because finding one name
        reads all media."""

    def on_event(self, stage: str, event: Event) -> None:
        writer, job = self._writer, self._job
        self.display.on_event(stage, event)
        if writer is None or job is None:
            return
        if self._ladder is not None:
            self._ladder.on_event(stage, event)
        if isinstance(event, Answered):
            shared = len(job.devices) > 1 and stage in STAGES and STAGES[stage].fans_out
            self._note_latest(job, writer, stage, event)
            writer.count_items(stage, len(event.keys), event.device if shared else "")
        elif isinstance(event, MemorySample):
            writer.memory(stage, asdict(event))
        elif isinstance(event, StageNotes):
            writer.imported(stage, event.values)
        elif isinstance(event, Total) and _is_first(job, stage):
            writer.count_total(stage, event.earlier + event.items)
        elif isinstance(event, Failed):
            self._names = self._names or media_paths_of(job)
            failure = failure_of(job, self._names, stage, event)
            writer.fail(stage, failure)
            self.display.fail(**failure)

    def _note_latest(self, job: Job, writer: RecordWriter, stage: str, event: Answered) -> None:
        """Record the file of an item of the frames or the encode stage, for pages that show it. It
        is looked up in at most one part in LOOK_UP_SHARE of the time."""
        began = time.monotonic()
        if stage not in SHOWN_STAGES or began < self._look_up_at.get(stage, 0.0):
            return
        kind = STAGES[stage].writes
        if event.media:
            of_item = (medium.path for medium in job.media if medium.digest == event.media)
        else:
            tasks = job.ledger.tasks(job.media)
            of_item = (task.medium.path for task in tasks if task.keys.get(kind) == event.keys[-1])
        writer.note_latest(stage, next(of_item, ""))
        now = time.monotonic()
        self._look_up_at[stage] = now + max(1.0, LOOK_UP_SHARE * (now - began))

    def on_stage_start(self, stage: str, total: int, done: int) -> None:
        """Show that a stage is about to start, or is waited for from now on."""
        if self._writer is not None and not self._writer.is_running(stage):
            self._writer.begin(stage)
        options = LearnedOptions() if self._job is None else self._job.config.groups.training
        instead: dict[str, Any] = {}
        if options.scored_only and stage == tune.STAGE.name:
            instead = {"verb": "scoring", "counts": "text"}
        elif self._job is not None and COUNTS.get(stage) == CHUNK:
            instead = {"counts": noun_of(self._job)}
        if self._writer is not None and self._job is not None and _is_first(self._job, stage):
            recorded = self._writer.stage(stage)
            done = recorded.before + recorded.items + recorded.running
            total += done
            instead["about"] = self._writer.record.plan.chunks
        elif stage == summarize.STAGE.name:
            instead["about"] = total
        worked = partial(self._worked, stage)
        instead["run_left"] = self._seconds_left if stage in STAGES else None
        loads = self._loads(stage)
        self.display.stage(
            StageStart(name=stage, total=total, done=done, loads=loads, worked=worked, **instead)
        )

    def _seconds_left(self) -> float | None:
        """Return the seconds that the run has left, as `penstock status` shows them."""
        if self._writer is None:
            return None
        record = self._writer.record
        return seconds_left(record, stages_of(record, time.time()))

    def _worked(self, stage: str) -> float:
        """Return the seconds that a stage worked in this run since the last such call."""
        stages = self._writer.record.stages if self._writer is not None else ()
        total = next((recorded.seconds for recorded in stages if recorded.name == stage), 0.0)
        before, self._shown_seconds[stage] = self._shown_seconds.get(stage, 0.0), total
        return float(total - before)

    def _progress_of(self, stage: str) -> tuple[int, int, bool] | None:
        """Return the items of a stage as `penstock status` shows them: done, all, and whether the
        latter is an estimate; None for what is not in the record."""
        stages = stages_of(self._writer.record, time.time()) if self._writer is not None else ()
        matching = (e for e in stages if e.name == stage and e.done + e.pending)
        return next(((e.done, e.done + e.pending, e.about) for e in matching), None)

    def _loads(self, stage: str) -> str:
        """Return a description of the weights that a stage loads, or an empty string."""
        part = STAGES[stage].part if stage in STAGES else None
        if self._job is None or not part or part not in self._job.model.settings:
            return ""
        half = "half" if part in get_args(HalfName) else "encoder"
        return f"the {part} {half}, {size(self._job.model.best(part).weight_bytes)}"

    def _on_rung_change(self, rung: RungRecord, text: str) -> None:
        if self._writer is not None:
            self._writer.rung(rung)
        self.display.print_line(text)

    @contextlib.contextmanager
    def pipeline_for_job(
        self,
        job: Job,
        launcher: Launcher,
        doing: str = "",
        another: str = "give another --out",
        outputs: Mapping[str, str] | None = None,
    ) -> Iterator[PipelineRunner]:
        """Yield the runner of a job. No other run works on the job's folder, and no process
        deletes its records. `outputs` are the output paths if the run writes no captions."""
        fetch = partial(fetch_parts, job.model, display=self.display)
        doing = doing or f"{job.pipeline[-1].verb} into"
        with only_run_in(job.out, doing, another), hold_lease(job) as lease:
            plan = summary(job)
            for note in filter(None, [*plan.notes, job.budget.warning]):
                self.display.print_line(note)
            self._job, self._writer = job, (writer := RecordWriter(job.out, job.stages))
            self._shown_seconds.clear()
            writer.record.plan = plan
            writer.record.outputs = output_paths(job) if outputs is None else dict(outputs)
            writer.record.earlier = existing_outputs(job)
            writer.carry_on(history_in(job.out), job_keys(job))
            writer.record.mounts = mounts_now(job.out, job.files)
            writer.record.media.total = job.requested
            if self._on_begin is not None:
                self._on_begin(job, writer)
            if self._command:
                names = [job_file.file.media_path for job_file in job.files]
                own = GeneratedFiles(job.store, out=job.out)
                for note in take(job.config, self._command, writer, job.store.url, own, names):
                    self.display.print_line(note)
                line = replaced_line(job.out, writer.record.outputs)
                if line and not same_work_in(job.out, writer.record.keys):
                    self.display.print_line(line)
                for note in lost_notes(job):
                    self.display.print_line(note)
            writer.write(force=True)
            self._ladder = ladder_of(job, self._on_rung_change)
            writes_captions = job.pipeline[-1].writes == "captions"
            loop = StageLoop(
                job=job,
                launcher=launcher_for(job, launcher, self.display.print_line),
                writer=writer,
                ladder=self._ladder,
                on_start=self.on_stage_start,
                fetch=fetch,
                capacity=unplanned(job),
                write_live=LiveCaptions(job, writer).write if writes_captions else None,
            )
            steps = StageRunner(loop, lease)
            try:
                yield PipelineRunner(job, steps, writer, self.display.print_line)
            except BaseException:
                self.display.close(self._progress_of)
                raise
            finally:
                self.display.close()
                with contextlib.suppress(EnvironmentFault):  # the same command deletes them, too
                    steps.end_lease()

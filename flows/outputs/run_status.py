"""Collects for programs the state of the run or the product in a folder, from its record.

The status of a run lists its finished items, rate and remaining time. The module reads files alone
and starts nothing.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.disk.json_records import json_of
from artifacts.wording import counted, first_of
from flows.core.console.lines import duration, size
from flows.core.console.pace import SLOW_SECONDS, STEADY_ITEMS, STEADY_SECONDS
from flows.core.pipelines import STAGES
from flows.outputs.record.product import Product, product_in, run_of
from flows.outputs.record.rounds import rounds_in, summary_json
from flows.outputs.record.run_read import load_record
from flows.outputs.record.run_record import RunRecord
from flows.outputs.record.stage_record import OnDevice, StageRecord
from flows.outputs.unwritten import count_unwritten
from stages.process.stage_spec import CHUNK

RECENT_SECONDS = 60.0
"""Window, in seconds, of the latest speed."""
SHORTEST_SECONDS = 1.0
"""Minimum seconds of work from which a speed is computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStatus:
    """One stage of a run. Failures of a stage that reads files are counted in files."""

    name: str
    counts: str
    """Noun of what it makes one by one; empty: none."""
    running: bool
    done: int
    """Items done in this run and before it."""
    failed: int
    pending: int
    about: bool
    """Whether `pending` is an estimate from file headers, because some files were not read yet."""
    rate: float | None
    """Items per second in this run; None if there are none."""
    rate_last_minute: float | None
    """Items per second in the last minute; None if the stage is not running."""
    seconds_left: float | None
    """Estimated seconds left; None: unknown."""
    seconds: float
    """Seconds that the stage has worked in this run."""
    peak_host_bytes: int
    peak_device_bytes: int
    devices: dict[str, OnDevice]
    """Device → what the stage has made, worked and used there, if it shares several."""
    taken_bytes: int
    """Peak bytes on its compute device above the baseline (imports, or other processes of a GPU);
    0: unknown."""
    planned_bytes: int
    """Planned value of `taken_bytes`; 0: unknown."""
    now_bytes: int
    """Bytes above that baseline in the last sample; 0: unknown, or the stage is not running."""


def stages_of(record: RunRecord, now: float) -> list[StageStatus]:
    """Return the stages of a record at the time `now`, in seconds since the epoch."""
    about = record.plan.chunks if record.media.open else 0
    peaks = {planned.stage: planned.peak_bytes for planned in record.plan.memory.stages}
    at = now if record.state == "running" else None
    noun = record.plan.counts
    return [
        _stage(
            stage,
            about * (record.plan.prompts if STAGES[stage.name].prompted else 1),
            at,
            peaks.get(stage.name, 0),
            noun,
        )
        for stage in record.stages
    ]


def _stage(
    stage: StageRecord, about: int, now: float | None, planned_bytes: int, noun: str
) -> StageStatus:
    """`noun`: what chunks of this run are called."""
    counts = STAGES[stage.name].counts
    running = now is not None and bool(stage.since)
    begun = stage.items + stage.running
    about *= STAGES[stage.name].of_media
    total = max(stage.total, about)
    done = stage.done_of(total)
    lost = stage.failed if STAGES[stage.name].can_reject_items else 0
    pending = max(0, total - done - lost)
    seconds = stage.seconds
    if running and now is not None:
        seconds += max(0.0, now - stage.since)
    rate = begun / seconds if begun and seconds >= SHORTEST_SECONDS else None
    lately = _recent_rate(stage, begun, now) if running and now is not None else None
    speed = lately or rate
    on_device = bool(stage.peak_device_bytes)
    peak = stage.peak_device_bytes if on_device else stage.peak_host_bytes
    last = stage.now[-1] if stage.now else (0, 0, 0)
    left = 0.0 if not pending else pending / speed if speed and now is not None else None
    return StageStatus(
        name=stage.name,
        counts=noun if counts == CHUNK else counts,
        running=running,
        done=done,
        failed=stage.failed,
        pending=pending,
        about=about > stage.total,
        rate=rate,
        rate_last_minute=lately,
        seconds_left=left,
        seconds=seconds,
        peak_host_bytes=stage.peak_host_bytes,
        peak_device_bytes=stage.peak_device_bytes,
        devices=stage.devices,
        taken_bytes=_above_baseline(stage, peak),
        planned_bytes=planned_bytes,
        now_bytes=_above_baseline(stage, last[2] if on_device else last[1]) if running else 0,
    )


def seconds_left(record: RunRecord, stages: Sequence[StageStatus]) -> float | None:
    """Return the estimated seconds until the last of all stages ends; None if there is nothing to
    estimate it from, and if nothing is left to make. `stages`: those of the record now.

    A stage counts by its rate in this run, and before that is steady by the plan, which has the
    rates of earlier runs. Stages that run at the same time count once, by the longest."""
    if record.state != "running" or record.partitions or not any(s.pending for s in stages):
        return None
    one_by_one, at_once = 0.0, 0.0
    for recorded, stage in zip(record.stages, stages, strict=True):
        is_planned = record.plan.chunks and STAGES[stage.name].of_media
        seconds = stage.seconds_left if _is_steady(recorded, stage) else None
        seconds = record.plan.seconds.get(stage.name) if seconds is None else seconds
        if seconds is None or not (stage.done or stage.pending or is_planned):
            return None
        if stage.running:
            at_once = max(at_once, seconds)
        else:
            one_by_one += seconds
    return one_by_one + at_once


def _is_steady(recorded: StageRecord, stage: StageStatus) -> bool:
    """Return whether a stage has made enough for an estimate of the time left, or has ended."""
    if not (stage.running and stage.pending):
        return True
    is_many = recorded.items + recorded.running >= STEADY_ITEMS
    least = STEADY_SECONDS if is_many else SLOW_SECONDS
    return stage.rate_last_minute is not None and stage.seconds >= least


def _above_baseline(stage: StageRecord, taken: int) -> int:
    """Return bytes above what was in use before the stage began; 0: unknown."""
    if not stage.peak_device_bytes:
        baseline = stage.notes.get("loaded_bytes", 0)
        return max(0, int(taken - baseline)) if baseline else 0
    baseline = stage.baseline_before_bytes
    if not (stage.processes or baseline):
        # It is recorded at the end of a process, whose first sample precedes its use of the GPU.
        baseline = stage.now[0][2] if stage.now else taken
    return max(0, int(taken - baseline))


def _recent_rate(stage: StageRecord, made: int, now: float) -> float | None:
    """Return chunks per second since the oldest sample of the last minute: 0 without a sample, None
    if the stage or that sample is too young to tell."""
    samples = [s for s in stage.recent if now - s[0] <= RECENT_SECONDS]
    if not samples:
        return 0.0 if now - stage.since > RECENT_SECONDS else None
    at, then = samples[0]
    return (made - then) / (now - at) if now - at >= SHORTEST_SECONDS else None


def advice(record: RunRecord) -> str:
    """Return advice for a run that ended before its work was done; empty if there is none, or its
    error gives it."""
    if record.state in ("done", "running"):
        return ""
    if record.hint:
        return record.hint
    retry, flow_run = "run the same command again", record.prefect
    if not flow_run and retry in record.error:
        return ""
    retry += " to continue"
    if flow_run:
        retry = f"`prefect flow-run retry {flow_run.id}` or the same command continues"
    return f"Finished work is kept: {retry}"


COLUMNS = (
    "stage", "done", "failed", "pending", "last minute", "overall", "time left", "worked",
    "peak memory",
)  # fmt: skip


def cells(stage: StageStatus) -> tuple[str, ...]:
    """Return one stage as table cells, one text per column."""
    lately = "-" if stage.rate_last_minute is None else f"{stage.rate_last_minute:.2f}/s"
    time_left = "-"
    if stage.pending:
        time_left = "unknown" if stage.seconds_left is None else duration(stage.seconds_left)
    peak = f"{size(stage.peak_host_bytes)} host" if stage.peak_host_bytes else "-"
    if stage.peak_device_bytes:
        peak += f", {size(stage.peak_device_bytes)} GPU"
    if stage.planned_bytes:
        over = "over the " * (stage.taken_bytes > stage.planned_bytes)
        taken = f"{size(stage.taken_bytes)} above its start, {over}" if stage.taken_bytes else ""
        peak += f" ({taken}{size(stage.planned_bytes)} planned)"
    unknown = not (STAGES[stage.name].of_media or stage.done or stage.pending)
    return (
        stage.name,
        counted(stage.done, stage.counts) if stage.counts else str(stage.done),
        str(stage.failed),
        "-" if unknown else ("~" if stage.about and stage.pending else "") + str(stage.pending),
        lately,
        "-" if stage.rate is None else f"{stage.rate:.2f}/s",
        time_left,
        duration(stage.seconds) if stage.seconds else "-",
        peak,
    )


def edited_text(names: Sequence[str]) -> str:
    """Return what became of the files of a data set that the user wrote or edited."""
    return f"{first_of(names)} kept, edited by you"


def output_paths(record: RunRecord) -> dict[str, str]:
    """Return the name and path of each output of a run, and its store."""
    paths = {**record.outputs, "store": record.plan.store}
    if record.state not in ("running", "done"):  # it did not come to write all of them
        paths = {n: p for n, p in paths.items() if not os.path.isabs(p) or os.path.lexists(p)}
    why = dict.fromkeys(record.earlier, "from an earlier run")
    why |= {name: edited_text(names) for name, names in record.edited.items()}
    for name, text in why.items():
        paths[name] = f"{paths.get(name, '')} ({text})"
    return {name: path for name, path in paths.items() if path}


def run_status(out: Path) -> dict[str, Any]:
    """Return the object that `penstock status --json` prints: the progress, and how many decisions
    are not in the files yet. Raises UsageError, EnvironmentFault."""
    product = product_in(out)
    run = run_of(product, out)
    unwritten = {} if run is None else {"unwritten": count_unwritten(run)}
    return {**_progress(out, product), **unwritten}


def progress_of(out: Path) -> dict[str, Any]:
    """Return the progress of the run or the product in a folder. It reads no captions, so a page
    may ask for it every second. Raises UsageError, EnvironmentFault.

    A product adds its own entries, and learning `rounds`; the others are of the last run.
    """
    return _progress(out, product_in(out))


def _progress(out: Path, product: Product | None) -> dict[str, Any]:
    state = {} if product is None else product.to_json()
    run = run_of(product, out)
    if run is None:
        return state
    record = load_record(run)
    if rounds := list(summary_json(rounds_in(out))):
        state["rounds"] = rounds
    values, stages = json_of(record), stages_of(record, time.time())
    pairs = zip(record.stages, stages, strict=True)
    values["stages"] = [{**json_of(stage), **asdict(status)} for stage, status in pairs]
    values["seconds_left"] = seconds_left(record, stages)
    return {**state, **values, "advice": advice(record)}

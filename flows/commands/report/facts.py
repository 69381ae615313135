"""Gathers the contents of a run's report as plain values, and writes the report.

For the stages these are a timeline of each process with its memory and rung, and tables of progress
and of planned versus measured memory. For a sift run they are values of marks, groups and
thumbnails. The module draws nothing.
"""

import json
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any, TypedDict
from urllib.parse import quote

from artifacts.disk.files import write_text
from artifacts.disk.json_records import read_jsonl_file
from artifacts.disk.json_shapes import Json
from artifacts.disk.regular_files import open_regular
from artifacts.errors import EnvironmentFault
from artifacts.remote.addresses import is_address
from artifacts.schema import values_of
from artifacts.wording import counted
from flows.commands.report.sections import (
    SHEET,
    add_labels,
    label_counts,
    label_run_below,
    labelled_media,
    rounds_facts,
)
from flows.commands.sift.marks import DIGITS, KEPT, MARKS, TEXTS, LeftOutRow
from flows.core.console.lines import duration, size
from flows.core.job.plan_record import RungRecord
from flows.core.machine.versions import seconds_of
from flows.core.media.media_file import writable
from flows.core.media.output_rows import FILE, MediaRow
from flows.core.options.formats import MEDIA
from flows.core.pages.document import SHARED, as_json, document, part, parts
from flows.core.pipelines import LABELS, SIFT, STAGES
from flows.outputs.captions import SUMMARIES
from flows.outputs.folder.foreign_files import LEFT_OUT_FILE, MARKS_FILE, refuse_replacing_page
from flows.outputs.folder.trust import belief_in
from flows.outputs.media_rows import (
    RUN_AGAIN,
    PageCaption,
    PageMedium,
    ShownSummary,
    captioned_media,
    failed_media,
)
from flows.outputs.record.product import product_in
from flows.outputs.record.rounds import rounds_in
from flows.outputs.record.run_read import load_record
from flows.outputs.record.run_record import RUN_RECORD, RunEntry, RunRecord, sum_of
from flows.outputs.record.stage_record import Point, StageRecord
from flows.outputs.run_status import COLUMNS, StageStatus, advice, cells, output_paths, stages_of
from flows.outputs.run_wording import kind_of, made_text, written
from flows.outputs.seen.check import lines_on
from flows.outputs.thumbnails import data_address, embed_thumbnails

MORE = ("planned time", "CPU time", "processes", "tokens generated", "attention")
MIN_SHARE_BYTES = 100_000_000
"""Minimum planned peak for which a share is shown; below it, noise of any process dominates."""
PARTS = {
    "weight_bytes": "weights",
    "activation_bytes": "activations",
    "kv_bytes": "KV cache",
    "workspace_bytes": "workspace",
    "context_bytes": "context",
    "peak_bytes": "planned peak",
}


class ShownTable(TypedDict):
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class OnEach(TypedDict):
    host: int | None
    device: int | None


class StageTimeline(TypedDict):
    """When a stage worked, and its memory in bytes."""

    name: str
    spans: list[list[float]]
    curves: list[list[Point]]
    planned: OnEach
    budget: OnEach
    rung: str


class RunTimeline(TypedDict):
    """The stages of a run, in seconds since its start."""

    seconds: float
    """From its start to its last update."""
    stages: list[StageTimeline]
    rungs: list[dict[str, Json]]


def timeline_of(record: RunRecord) -> RunTimeline:
    """Return the timeline of the last run."""
    began = seconds_of(record.started)
    seconds = max(0.0, seconds_of(record.updated) - began)
    stages = [_stage(record, stage, began, seconds) for stage in record.stages]
    last = max((span[1] for stage in stages for span in stage["spans"]), default=0.0)
    return {
        "seconds": max(seconds, last),
        "stages": stages,
        "rungs": [_rung(rung, began) for rung in record.rungs],
    }


def timeline_of_entry(entry: RunEntry) -> RunTimeline:
    """Return the same of an earlier run, as far as `history` has it."""
    unknown: OnEach = {"host": None, "device": None}
    stages: list[StageTimeline] = [
        {
            "name": name,
            "spans": [[points[0][0], points[-1][0]]],
            "curves": [points],
            "planned": unknown,
            "budget": unknown,
            "rung": "",
        }
        for name, points in entry.timeline.items()
        if points
    ]
    began = seconds_of(entry.started)
    return {
        "seconds": entry.seconds,
        "stages": stages,
        "rungs": [_rung(rung, began) for rung in entry.rungs],
    }


def runs_table(entries: Sequence[RunEntry]) -> ShownTable | None:
    """Return `columns` and `rows`: each run that made something, and their sum; None of one run."""
    total = sum_of(entries)
    if total is None or total.runs == 1:
        return None
    rows = [[_moment(entry.started), *_run_cells(entry)] for entry in entries]
    rows.append([f"all {total.runs} runs", *_run_cells(total)])
    return _without_empty_columns(
        (
            "started",
            "time",
            "made",
            "tokens generated",
            "peak host memory",
            "peak GPU memory",
            "rungs",
        ),
        rows,
    )


def _run_cells(entry: RunEntry) -> tuple[str, ...]:
    rungs = dict.fromkeys(f"{rung.stage} {rung.name}" for rung in entry.rungs)
    return (
        duration(entry.seconds),
        made_text(entry),
        f"{entry.tokens:,}" if entry.tokens else "-",
        size(entry.peak_host_bytes) if entry.peak_host_bytes else "-",
        size(entry.peak_device_bytes) if entry.peak_device_bytes else "-",
        "; ".join(rungs) or "-",
    )


def _stage(record: RunRecord, stage: StageRecord, began: float, seconds: float) -> StageTimeline:
    spans = stage.spans
    curves = stage.curves()
    drawn = [[start, end] for start, end, _ in spans]
    if record.state in ("running", "died") and stage.since:
        start = max(0.0, stage.since - began)
        drawn.append([start, max(start, seconds)])
        now = [(round(start + t, 2), host, device) for t, host, device in stage.now]
        curves += [now] if now else []
    plan = record.plan.memory.of_stage(stage.name)
    gpu = record.plan.device != "cpu"
    on_device = gpu and STAGES[stage.name].part is not None
    host_base = int(stage.notes.get("loaded_bytes") or 0)
    budget, peak = record.plan.memory.budget_bytes, plan.peak_bytes if plan else None
    host = plan.host_bytes if plan and on_device else peak
    return {
        "name": stage.name,
        "spans": drawn,
        "curves": curves,
        "planned": {
            "host": _above(host_base, host),
            "device": _above(stage.baseline_before_bytes, peak) if on_device else None,
        },
        "budget": {
            "host": None if gpu or not stage.spans else _above(host_base, budget),
            "device": _above(stage.baseline_before_bytes, budget) if on_device else None,
        },
        "rung": plan.name if plan else "",
    }


def _above(base: int, more: int | None) -> int | None:
    """Return the baseline plus the planned bytes; None if nothing was planned."""
    return base + more if more else None


def _rung(rung: RungRecord, began: float) -> dict[str, Json]:
    texts = {name: getattr(rung, name) for name in ("stage", "name", "reason", "error")}
    return {**texts, "at": max(0.0, seconds_of(rung.time) - began)}


def stage_table(record: RunRecord, stages: Sequence[StageStatus]) -> ShownTable:
    """Return `columns` and `rows`, one row per stage."""
    planned = record.plan.seconds
    rows = [
        [*cells(stage), *_more(recorded, planned.get(stage.name))]
        for stage, recorded in zip(stages, record.stages, strict=True)
    ]
    return _without_empty_columns((*COLUMNS, *MORE), rows)


def plan_table(record: RunRecord) -> ShownTable:
    """Return `columns` and `rows`: each stage's planned peak with its parts, and the measured peak.
    All exclude the memory of imports."""
    rows = []
    for stage in record.stages:
        plan = record.plan.memory.of_stage(stage.name)
        if plan is None or not plan.peak_bytes:
            continue
        measured = _above_imports(record, stage)
        is_comparable = measured > 0 and plan.peak_bytes >= MIN_SHARE_BYTES
        share = f"{measured / plan.peak_bytes:.0%}" if is_comparable else "-"
        share += ", over it" if is_comparable and measured > plan.peak_bytes else ""
        planned = (getattr(plan, part) for part in PARTS)
        parts = (size(part) if part else "-" for part in planned)
        texts = size(measured) if measured > 0 else "-"
        rows.append([stage.name, plan.name or "-", *parts, texts, share])
    return _without_empty_columns(
        ("stage", "rung", *PARTS.values(), "measured peak", "of the plan"), rows
    )


def _above_imports(record: RunRecord, stage: StageRecord) -> int:
    if record.plan.device != "cpu":
        return int(stage.peak_device_bytes - stage.baseline_before_bytes)
    return int(stage.peak_host_bytes - stage.notes.get("loaded_bytes", 0))


def _more(stage: StageRecord, planned_seconds: float | None) -> tuple[str, ...]:
    return (
        "-" if planned_seconds is None else duration(planned_seconds),
        duration(stage.cpu_seconds) if stage.cpu_seconds else "-",
        str(stage.processes or "-"),
        f"{stage.tokens:,}" if stage.tokens else "-",
        stage.attention or "-",
    )


def _without_empty_columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> ShownTable:
    """Return a table without columns that hold only `-`."""
    texts = [at for at in range(len(columns)) if any(row[at] != "-" for row in rows)]
    return {
        "columns": [columns[at] for at in texts],
        "rows": [[row[at] for at in texts] for row in rows],
    }


MOST_FILES = 20_000
"""Most files whose values are on the page; of more, a sample evenly over all."""
GROUPS, MEMBERS = 40, 6
"""Most groups that are shown, and most members of each that are shown as pictures."""
COMPARISON = re.compile(r"\s*(\w+)\s*(<=|<|>=|>|=)\s*([-+]?[\d.]+)\s*")
"""A part of `--keep` that a page shows as a threshold."""
LEFT = 24
"""Files left out that are shown as pictures."""
ENDS = 6
"""Files with the lowest and with the highest value of a mark that are shown."""
SIDE = 160
"""Pixels of the longer side of a thumbnail."""
HIGH_FALLS_OUT = frozenset(("clipped", "black", "black_seconds", "frozen", "frozen_seconds"))
"""Marks whose high values fall out, besides faults, letterbox and flags. Other marks lose their low
values."""
HIGH_FALLS_OUT |= {"letterbox", "bilevel", "faults", "blurred", "exact", "duplicate", "similar"}
NUMBERS = {"kept_group": "kept_duplicate", "group": "duplicate", "similar_group": "similar"}
"""Marks that only name a group, and the flags of its copies."""


class ShownMark(TypedDict):
    """A mark of the files of a sift run."""

    name: str
    text: str
    high: bool
    """Whether high values fall out."""
    limit: float | None
    values: Sequence[float | None]


class CopyGroup(TypedDict):
    kind: str
    members: list[int]
    """Positions of its files, the best one first."""


def sift_facts(out: Path, record: RunRecord, name: str) -> dict[str, Any]:
    """Return the data of the page about the sift run in `out`."""
    total, rows = _rows(out / MARKS_FILE)
    left = read_jsonl_file(LeftOutRow, out / LEFT_OUT_FILE, SIFT_AGAIN)
    names = [n for n in (rows[0] if rows else ()) if n not in (*TEXTS, *NUMBERS, *KEPT)]
    limits = limits_of(record.keep)
    # A threshold at the flag of copies leaves out what the run did.
    judged = {n: KEPT[0] for n in NUMBERS.values() if n in limits}
    marks = [
        _mark(n, [row[n] if row.get(of) is None else row[of] for row in rows], limits.get(n))
        for n, of in ((n, judged.get(n, n)) for n in names)
    ]
    marks = [mark for mark in marks if any(value is not None for value in mark["values"])]
    groups = [group for number in NUMBERS for group in _groups(rows, number)]
    groups = [g for g in groups if g["kind"] == KEPT[0]] or groups
    places = {row["path"]: at for at, row in enumerate(rows)}
    pictures = [(places[row.path], row.why) for row in left if row.path in places][:LEFT]
    shown = {at for g in groups for at in g["members"][:MEMBERS]} | {at for at, _ in pictures}
    shown |= {at for mark in marks for at in _ends(mark["values"])}
    failed = record.media.failed
    counts = {"files": record.media.total, "marked": total, "left out": len(left)}
    return {
        "name": name,
        "state": record.state,
        "totals": [(n, f"{count:,}") for n, count in {**counts, "failed": failed}.items()],
        "marked": total,
        "files": [row["media_path"] for row in rows],
        "marks": marks,
        "groups": groups,
        "most": MEMBERS,
        "thumbs": _thumbs(out, rows, sorted(shown)),
        "keep": record.keep,
        "pictures": pictures,
        "left": [(row.media_path, row.why) for row in left[:MOST_FILES]],
        "failures": [(failure.media_path, failure.message) for failure in record.failures],
    }


SIFT_AGAIN = "Run the same `penstock sift` again, which rewrites it"
OF_EACH = frozenset(("path", "media_path", "kind", "seconds"))
"""Fields of a row of marks that the page reads by name."""


def _rows(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of rows of the table, and those of the page. Raises EnvironmentFault."""
    if not path.exists():
        return 0, []
    with open_regular(path) as file:
        total = sum(1 for _ in file)
        file.seek(0)
        step = -(-total // MOST_FILES) or 1
        lines = list(islice(file, 0, None, step))
    try:
        rows = [json.loads(line) for line in lines]
        columns = {frozenset(row.keys()) for row in rows}
    except (ValueError, AttributeError) as error:
        raise EnvironmentFault(f"{path} cannot be read: invalid JSON", hint=SIFT_AGAIN) from error
    if len(columns) > 1 or not all(names >= OF_EACH for names in columns):
        raise EnvironmentFault(f"{path} cannot be read: a line lacks fields", hint=SIFT_AGAIN)
    return total, rows


def limits_of(keep: str) -> dict[str, float]:
    """Return the threshold of each mark at which a page begins, of a condition `--keep`: what lies
    beyond falls out. Empty where the parts of the condition are not such comparisons alone."""
    matches = [COMPARISON.fullmatch(text) for text in re.split(r"\band\b", keep)]
    limits: dict[str, float] = {}
    for name, sign, text in (match.groups() for match in matches if match):
        high, step = name in HIGH_FALLS_OUT, 0.0 if "=" in sign else 10.0**-DIGITS
        is_flag = high and sign == "=" and not float(text)
        if is_flag or sign[0] == ("<" if high else ">"):
            limits[name] = round(float(text) - (step if high else -step), DIGITS)
    return limits if len(limits) == len(matches) else {}


def _mark(name: str, values: Sequence[float | None], limit: float | None) -> ShownMark:
    known = MARKS.get(name)
    return {
        "name": name,
        "text": known.text if known else "score of a head",
        "high": name in HIGH_FALLS_OUT,
        "limit": limit,
        "values": values,
    }


def _groups(rows: Sequence[Mapping[str, Any]], number: str) -> list[CopyGroup]:
    """Return the groups of copies, each with its best member first."""
    flag = NUMBERS[number]
    by_number: dict[int, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        if row[number] is not None:
            by_number[row[number]].append(at)
    every = [sorted(members, key=lambda at: rows[at][flag]) for members in by_number.values()]
    return [
        {"kind": flag, "members": members}
        for members in sorted(every, key=len, reverse=True)[:GROUPS]
    ]


def _ends(values: Sequence[float | None]) -> list[int]:
    known = sorted((v, at) for at, v in enumerate(values) if v is not None)
    return [at for _, at in (*known[:ENDS], *known[-ENDS:])]


def _thumbs(out: Path, rows: Sequence[Mapping[str, Any]], shown: Sequence[int]) -> dict[int, str]:
    """Return the thumbnails of these rows. An address is requested only if a folder of this user
    vouches for it."""
    entries = read_jsonl_file(MediaRow, out / MEDIA, RUN_AGAIN) if belief_in(out).is_own else []
    vouched = {entry.address for entry in entries}
    thumbs = dict.fromkeys(shown, "")
    for at, row in ((at, rows[at]) for at in shown):
        if not is_address(str(row["path"])) or row["path"] in vouched:
            middle = None if row["kind"] == "image" else (row["seconds"] or 0.0) / 2
            thumbs[at] = data_address(row["path"], middle, SIDE)
    return thumbs


Rows = Iterator[tuple[str, str]]
PACKAGE = "flows.commands.report"
SHARED_SCRIPTS = ("base.js", "charts.js", "windowed.js", "choosing.js", "scene.js")
SCRIPTS = ("timeline.js", "sections.js", "media.js", "page.js")
"""Parts of the page's script, in their order, after those that it shares with other pages."""


def write_report(out: Path, to: Path | None = None) -> Path:
    """Write the report of the run in `out` to a file (None: `report.html` in that folder), and
    return its path. Raises UsageError, EnvironmentFault."""
    path = out / "report.html" if to is None else to
    refuse_replacing_page(path)
    write_text(path, [_page(out, path.absolute().parent)])
    return path


def _page(out: Path, folder: Path) -> str:
    if os.path.lexists(out / RUN_RECORD) and kind_of(record := load_record(out)) == SIFT[0].writes:
        name = writable(out.absolute().name)
        return page(sift_facts(out, record, name), ("base.js",), ("sift.js",))
    return page(facts(out, folder))


def page(data: Json, shared: Sequence[str] = SHARED_SCRIPTS, own: Sequence[str] = SCRIPTS) -> str:
    """Return the report as HTML. All user content is in `data`, which the page's script shows as
    text and never as markup. It may hold thumbnails."""
    script = "\n".join([parts(SHARED, shared), part("start.js", PACKAGE), parts(PACKAGE, own)])
    return document(
        "Penstock report",
        Template(part("page.html", PACKAGE)).substitute(data=as_json(data)),
        part("page.css", PACKAGE),
        script,
        img_src="file: 'self' data:",
        media_src="file: 'self'",
    ).html


def facts(out: Path, folder: Path) -> dict[str, Any]:
    """Return the data of a page in `folder` about the last run into `out`, or the product there.
    Raises UsageError if there was none, EnvironmentFault."""
    product = product_in(out)
    run = out if product is None else product.reported_run
    record = load_record(run)
    is_labels = kind_of(record) == LABELS
    edited = Counter[str]()
    summaries = (
        read_jsonl_file(ShownSummary, run / SUMMARIES, RUN_AGAIN) if record.summaries else []
    )
    if is_labels:
        media = labelled_media(run, folder)
    else:
        media, edited = captioned_media(run, folder, summaries)
    labels = run if is_labels else label_run_below(run)
    if labels is not None and not is_labels:
        add_labels(media, labelled_media(labels, folder, max(SHEET, len(media))))
    embed_thumbnails(media, folder)
    prompts = list(dict.fromkeys(medium["prompt"] for medium in media if medium["prompt"]))
    if len(prompts) == 1:  # shown once, above
        for medium in media:
            medium["prompt"] = ""
    runs, timeline = record.current_runs(), timeline_of(record)
    others = [entry for entry in runs if entry.started != record.started]
    has_worked = any(stage.processes or stage.since for stage in record.stages)
    shown = timeline if has_worked or not runs else timeline_of_entry(runs[-1])
    return {
        "folder": FILE + quote(os.fsencode(os.path.abspath(folder))) + "/",
        "name": writable(out.absolute().name),
        "state": record.state,
        "error": record.error,
        "advice": advice(record),
        "updated": _moment(record.updated),
        "totals": list(_totals(record, timeline["seconds"], runs, _tokens(media, summaries))),
        "runs": runs_table(runs),
        "about": [
            *(product.about() if product else ()),
            *_about(record, prompts),
            *((name, f"{count:,}") for name, count in edited.items() if count),
            *(("trainer", line) for line in (() if product else lines_on(run))),
            *(("last run", duration(timeline["seconds"])) for _ in others[:1]),
            ("folder", writable(str(run.absolute()))),
        ],
        **(product.sections() if product else {}),
        "rounds": rounds_facts(rounds_in(out)),
        "stages": stage_table(record, stages_of(record, time.time())),
        "plan": plan_table(record),
        "timeline": shown,
        "of_run": "" if shown is timeline else _moment(runs[-1].started),
        "failures": [*map(values_of, failed_media(run) or record.failures)],
        "failed": record.media.failed,
        "files": record.media.total - record.media.failed,
        "warnings": [[s.name, text] for s in record.stages for text in s.warnings],
        "media": media,
        "labels": label_counts(labels) if labels is not None else None,
        "captioned": not is_labels,
    }


def _tokens(media: Sequence[PageMedium[PageCaption]], summaries: Sequence[ShownSummary]) -> int:
    """Return the tokens of captions and summaries; 0 of labels, which have none."""
    texts = sum(caption.tokens for medium in media for caption in medium["captions"])
    return texts + sum(row.tokens for row in summaries)


def _totals(record: RunRecord, seconds: float, runs: Sequence[RunEntry], tokens: int) -> Rows:
    media, total = record.media, sum_of(runs)
    count, kind = written(record)
    yield kind, f"{count:,}"
    if record.summaries:
        yield "summaries", f"{record.summaries:,}"
    yield "files", f"{media.total:,}"
    yield "files failed", f"{media.failed:,}"
    if record.cut:
        yield "cut", f"{record.cut:,}"
    if tokens:
        yield "tokens in these texts", f"{tokens:,}"
    of = f" of {counted(total.runs, 'run')}" if total is not None and total.runs > 1 else ""
    yield f"time{of}", duration(seconds if total is None else total.seconds)
    peaks: list[RunEntry | StageRecord] = [*record.stages, *([total] if total is not None else [])]
    yield "peak host memory", size(max(of.peak_host_bytes for of in peaks))
    if device := max(of.peak_device_bytes for of in peaks):
        yield "peak GPU memory", size(device)
    if budget := record.plan.memory.budget_bytes:
        yield "budget above imports", size(budget)


def _about(record: RunRecord, prompts: list[str]) -> Rows:
    plan = record.plan
    yield "started", _moment(record.started)
    yield "on", ", ".join(filter(None, (record.host, plan.device if plan.model else "")))
    for name, text in (("model", plan.model), ("revision", plan.revision), ("commit", plan.commit)):
        if text:
            yield name, text
    for name, half in plan.halves.items():
        weights = f"{size(half.bytes)} of weights in {half.precision}"
        parameters = f"{half.parameters / 1e6:,.1f} M parameters"
        yield f"{name} half", f"{weights}, {parameters}, {half.computed_by}"
    if plan.features_as:
        yield "features stored as", plan.features_as
    if plan.sampling:
        options = {k: v for k, v in values_of(plan.sampling).items() if v not in (None, False)}
        yield "sampling", ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in options.items())
    if plan.batch_size:
        yield "batches of", str(plan.batch_size)
    if len(prompts) == 1:
        yield "prompt", prompts[0]
    if plan.words.trigger:
        yield "trigger word", plan.words.trigger
    yield from (("note", note) for note in plan.notes)
    if record.prefect:
        yield "flow run", f"{record.prefect.name} ({record.prefect.id})"
    yield from output_paths(record).items()
    yield "versions", ", ".join(f"{k} {v}" for k, v in record.versions.items())


def _moment(stamp: str) -> str:
    return datetime.fromisoformat(stamp).strftime("%Y-%m-%d %H:%M:%S %Z")

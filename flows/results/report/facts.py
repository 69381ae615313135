"""Gathers the contents of a run's report as plain values, and writes the report."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from artifacts.errors import UsageError
from artifacts.files import write_text
from flows.console.units import duration, size
from flows.job.job_summary import computed_by
from flows.media.media_files import writable
from flows.pages.document import SHARED, as_json, document, part, parts
from flows.pipelines import LABELS, SIFT
from flows.results.export_result import ExportFound, export_in
from flows.results.foreign_files import refuse_replacing_page
from flows.results.report.media import FILE, captioned_media, failed_media
from flows.results.report.sections import (
    export_about,
    label_counts,
    labelled_media,
    parity_facts,
    rounds_facts,
    training_facts,
)
from flows.results.report.sift import sift_facts
from flows.results.report.stages import plan_table, stage_table, timeline_of
from flows.results.rounds import rounds_in
from flows.results.run_read import load_record
from flows.results.run_record import RUN_RECORD
from flows.results.status import (
    advice,
    kind_of,
    output_paths,
    stages_of,
    ways_line,
    written,
)
from flows.results.tuned import training_in

Rows = Iterator[tuple[str, str]]
PACKAGE = "flows.results.report"
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


def page(data: Any, shared: Sequence[str] = SHARED_SCRIPTS, own: Sequence[str] = SCRIPTS) -> str:
    """Return the report as HTML. All user content is in `data`, which the page's script shows as
    text and never as markup. A page of other `shared` and `own` scripts has thumbnails in it."""
    script = "\n".join([parts(SHARED, shared), part("start.js", PACKAGE), parts(PACKAGE, own)])
    thumbnails = "" if own is SCRIPTS else " data:"
    return document(
        "Penstock report",
        Template(part("page.html", PACKAGE)).substitute(data=as_json(data)),
        part("page.css", PACKAGE),
        script,
        img_src=f"file: 'self'{thumbnails}",
        media_src="file: 'self'",
    ).html


def facts(out: Path, folder: Path) -> dict[str, Any]:
    """Return the data of a page in `folder` about the last run into `out`, a training, or an
    export's run of the original. Raises UsageError if there was none, EnvironmentFault."""
    export, training = export_in(out), training_in(out)
    run = training.run if training else _run_of(export, out)
    record = load_record(run)
    is_labels = kind_of(record) == LABELS
    media = labelled_media(run, folder) if is_labels else captioned_media(run, folder)
    prompts = list(dict.fromkeys(medium["prompt"] for medium in media if medium["prompt"]))
    if len(prompts) == 1:  # shown once, above
        for medium in media:
            medium["prompt"] = ""
    timeline = timeline_of(record)
    return {
        "folder": FILE + quote(os.fsencode(os.path.abspath(folder))) + "/",
        "name": writable(out.absolute().name),
        "state": record["state"],
        "error": record["error"],
        "advice": advice(record),
        "updated": _moment(record["updated"]),
        "totals": list(_totals(record, timeline["seconds"])),
        "about": [
            *(export_about(export) if export else ()),
            *_about(record, prompts),
            ("folder", writable(str(run.absolute()))),
        ],
        "parity": parity_facts(export) if export else None,
        "training": training_facts(training) if training else None,
        "rounds": rounds_facts(rounds_in(out)),
        "stages": stage_table(record, stages_of(record, time.time())),
        "plan": plan_table(record),
        "timeline": timeline,
        "failures": failed_media(run) or record["failures"],
        "failed": record["media"]["failed"],
        "files": record["media"]["total"] - record["media"]["failed"],
        "warnings": [[e["name"], text] for e in record["stages"] for text in e["warnings"]],
        "media": media,
        "labels": label_counts(run) if is_labels else None,
    }


def _run_of(export: ExportFound | None, out: Path) -> Path:
    """Return the folder of the run to report. Raises UsageError for an export without one."""
    if export is None:
        return out
    if not export.runs:
        raise UsageError(
            f"{out} has no record of the runs that compared the checkpoint with its original",
            hint=f"Name the folder of the export, or see its parity: `penstock status {out}`",
        )
    return export.runs[0]


def _totals(record: Mapping[str, Any], seconds: float) -> Rows:
    media, stages = record["media"], record["stages"]
    count, kind = written(record)
    yield kind, f"{count:,}"
    if record["summaries"]:
        yield "summaries", f"{record['summaries']:,}"
    yield "files", f"{media['total']:,}"
    yield "failed", f"{media['failed']:,}"
    if record["cut"]:
        yield "cut", f"{record['cut']:,}"
    if tokens := sum(stage["tokens"] for stage in stages):
        yield "tokens", f"{tokens:,}"
    yield "time", duration(seconds)
    yield "peak host memory", size(max(stage["peak_host_bytes"] for stage in stages))
    device = max(stage["peak_device_bytes"] for stage in stages)
    if device:
        yield "peak GPU memory", size(device)
    budget = (record["plan"].get("memory") or {}).get("budget_bytes")
    if budget:
        yield "budget", size(budget)


def _about(record: Mapping[str, Any], prompts: list[str]) -> Rows:
    """Yield facts about the run: start, machine, model, settings and outputs."""
    plan = record["plan"]
    yield "started", _moment(record["started"])
    yield "on", ", ".join(filter(None, (record["host"], plan.get("device", ""))))
    for name in ("model", "revision", "commit", "route"):
        if plan.get(name):
            yield name, str(plan[name])
    for name, half in plan.get("halves", {}).items():
        weights = f"{size(half['bytes'])} of weights in {half['precision']}"
        parameters = f"{half['parameters'] / 1e6:,.1f} M parameters"
        yield f"{name} half", f"{weights}, {parameters}, {computed_by(half)}"
    sampling = {k: v for k, v in plan.get("sampling", {}).items() if v not in (None, False)}
    if sampling:
        yield "sampling", ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in sampling.items())
    if plan.get("batch_size"):
        yield "batches of", str(plan["batch_size"])
    if encoded := ways_line(record):
        yield "features encoded", encoded
    if len(prompts) == 1:
        yield "prompt", prompts[0]
    yield from (("note", note) for note in plan.get("notes", ()))
    if record["prefect"]:
        yield "flow run", f"{record['prefect']['name']} ({record['prefect']['id']})"
    yield from output_paths(record).items()
    yield "versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items())


def _moment(stamp: str) -> str:
    return datetime.fromisoformat(stamp).strftime("%Y-%m-%d %H:%M:%S %Z")

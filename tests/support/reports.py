"""The folder of a run as a report finds it, of any length, with no model run."""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from artifacts.disk.files import write_json, write_text
from artifacts.disk.json_records import json_of
from artifacts.disk.json_shapes import Json
from artifacts.texts.captions import Caption, Failure, write_jsonl
from artifacts.texts.labels import Labelled, Scored
from flows.commands.status.status_command import lines
from flows.core.job.plan_record import PlanRecord, SamplingRecord
from flows.core.machine.versions import now
from flows.core.media.media_file import IMAGE_SUFFIXES, MediaFile
from flows.core.pipelines import LABEL
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.run_read import load_record
from flows.outputs.record.run_record import MediaCounts
from flows.outputs.record.stage_record import StageRecord
from flows.outputs.run_status import stages_of
from flows.outputs.write import media_line
from stages.process.events import StageOutcome
from tests.support.rows import caption

GIB = 1 << 30
PLAN = PlanRecord(
    model="a/model-7b",
    precision={"vision": "bf16", "language": "int8"},
    batch_size=8,
    sampling=SamplingRecord(chunk_seconds=30.0, fps=1.0),
    store="/store",
)


def media_file(path: Path, source: str = "clips") -> MediaFile:
    kind: Any = "image" if path.suffix in IMAGE_SUFFIXES else "video"
    name = path.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return MediaFile(path=path.absolute(), media_path=name, source=source, kind=kind)


def captions_of(file: MediaFile, texts: Sequence[str], seconds: float = 2.0) -> list[Caption]:
    """A chunk for each text."""
    still = file.kind == "image"
    rows = []
    for number, text in enumerate(texts):
        start, end = (0.0, 0.0) if still else (number * seconds, (number + 1) * seconds)
        row = caption(text, start, end, media=file.media_path)
        values = {name: getattr(row, name) for name in Caption.__slots__}
        rows.append(Caption(**{**values, "source": file.source, "warnings": ()}))
    return rows


def status_of(out: Path) -> str:
    """What `penstock status` prints of a run."""
    writer = load_record(out)
    return "\n".join(lines(writer, stages_of(writer, 0.0)))


TRIGGER = "ohwx"
SEARCHES = {
    "Müller": ["1.png", "2.png"],
    "müller RING": ["1.png"],
    "Zürich square": ["2.png"],
    "ohwx": ["1.png", "2.png", "3.png"],
    "OHWX star": ["3.png"],
    "Müller star": [],
}
"""Search query → the files of `mac_folder` that a page finds. Each of their captions begins with
TRIGGER."""


def mac_folder(folder: Path) -> list[tuple[MediaFile, list[Caption]]]:
    """Pictures in folders whose names are decomposed, as macOS writes them."""
    found = []
    for number, (place, thing) in enumerate(
        (("Müller", "ring"), ("Zürich/Müller", "square"), ("else", "star"))
    ):
        name = unicodedata.normalize("NFD", f"{place}/{number + 1}.png")
        (folder / name).parent.mkdir(parents=True)
        Image.new("RGB", (640, 480), "red").save(folder / name)
        file = replace(media_file(folder / name), media_path=name)
        found.append((file, captions_of(file, [f"{TRIGGER}, A Red {thing}."])))
    return found


def write_run(
    out: Path,
    captioned: Sequence[tuple[MediaFile, Sequence[Caption]]],
    failures: Sequence[Failure] = (),
    plan: PlanRecord = PLAN,
) -> RecordWriter:
    """What a finished run leaves, but for its time line."""
    writer = RecordWriter(out)
    rows = [row for _, captions in captioned for row in captions]
    write_jsonl(out / "captions.jsonl", rows)
    write_jsonl(out / "failures.jsonl", failures)
    write_text(out / "media.jsonl", (media_line(file, len(rows)) for file, rows in captioned))
    writer.record.plan, writer.record.captions = replace(plan), len(rows)
    writer.record.state = "done"
    writer.record.media = MediaCounts(total=len(captioned) + len(failures), failed=len(failures))
    writer.write(force=True)
    return writer


def scored(name: str, score: float = 0.2, box: list[int] | None = None) -> Scored:
    """A label that is given."""
    return Scored(
        label=name, score=score, passed=True, whole=score, box=box, threshold=None, why="x"
    )


def labelled(file: MediaFile, *labels: Scored, time: float | None = None) -> Labelled:
    return Labelled(
        media_path=file.media_path,
        source=file.source,
        time=time,
        labels=labels,
        top=labels[0]["label"] if labels else "",
        model="m",
        precision={},
        features="k",
        labels_digest="d",
    )


def write_labels(out: Path, found: Sequence[tuple[MediaFile, Sequence[Labelled]]]) -> RecordWriter:
    """What a finished run leaves that gave these labels."""
    writer = write_run(out, [])
    writer.record.stages = [StageRecord(name=stage.name) for stage in LABEL]
    writer.record.rows = len(found)
    writer.write(force=True)
    write_jsonl(out / "labels.jsonl", [row for _, rows in found for row in rows])
    write_text(out / "media.jsonl", (media_line(file, len(rows)) for file, rows in found))
    names = {one["label"] for _, rows in found for row in rows for one in row.labels}
    of_each: dict[str, Json] = {"median": 0.2, "deviation": 0.1, "threshold": 0.3, "from": "given"}
    counts: list[Json] = [
        {**of_each, "label": name, "passed": at, "bins": [0, 3, 9, 1]}
        for at, name in enumerate(sorted(names))
    ]
    messages: Json = {
        "pictures": len(found),
        "labelled": 1,
        "low": 0.1,
        "high": 0.5,
        "labels": counts,
    }
    write_json(out / "label_report.json", messages)
    return writer


def work(
    writer: RecordWriter, stage: str, start: float, seconds: float, timeline: list[Any], **more: Any
) -> None:
    """A process of a stage, so many seconds after the run's start."""
    began = writer.stage(stage).seconds
    outcome = StageOutcome(name=stage, seconds=seconds, timeline=timeline, **more)
    outcome.peak_host_bytes = max((p[1] for p in timeline), default=0)
    outcome.peak_device_bytes = max((p[2] for p in timeline), default=0)
    writer.add(outcome, attention="sdpa", precision={"vision": "bf16", "language": "int8"})
    writer.stage(stage).spans[-1] = (start, start + seconds, began)


def curve(seconds: float, base: int, top: int, device: int = 0) -> list[list[float]]:
    """Points twice a second, none at the very end: up within a tenth of the time, then in waves."""
    points = []
    for number in range(int(seconds * 2)):
        at = number / 2
        share = min(1.0, at / (seconds / 10)) * (1.0 if number % 9 < 3 else 0.82)
        high = int(base + (top - base) * share)
        points.append([at, base if device else high, int(device * share)])
    return points


def started_ago(writer: RecordWriter, seconds: float) -> None:
    """As if the run had begun earlier, and ended now."""
    begun = datetime.now(UTC) - timedelta(seconds=seconds)
    writer.record.started, writer.record.updated = begun.isoformat(timespec="seconds"), now()
    write_json(writer.path, json_of(writer.record))

"""Writes the page of a run in Prefect's UI: plan, stages, memory peaks, sample outputs, failures
and output paths.

Both of Prefect's UIs show images in `data:` URLs, checked in Chromium with 3.8.8. Browsers do not
follow links from there to files, so paths are shown as text.
"""

import base64
import json
import logging
import shlex
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.runtime import flow_run

from artifacts.regular_files import open_regular
from flows.deployments.crashed import KEY, pages_of, without_retries
from flows.deployments.pictures import pictures_of
from flows.deployments.view import plain
from flows.job.prepare import Job
from flows.media.media_files import MediaFile
from flows.pipelines import CAPTION, LABELS, product_of
from flows.results.label_files import LINES
from flows.results.run_record import RunRecord
from flows.results.run_status import (
    COLUMNS,
    advice,
    cells,
    description_lines,
    output_paths,
    stages_of,
)

SAMPLES = 6
MAX_LETTERS = 400
"""Characters of a caption that are shown."""
FILES = {product_of(CAPTION): "captions.jsonl", LABELS: LINES}
"""Product of a run → the file whose lines are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """The captions of a few media, with thumbnails of those that could be decoded."""

    rows: tuple[tuple[str, str], ...] = ()
    """Name and caption or labels of each."""
    pictures: Mapping[int, bytes] = field(default_factory=dict)
    """Index of a row → a JPEG."""


def samples_of(job: Job) -> Samples:
    """Return the first, the last and some rows between of a run's output. Raises any error of
    reading it."""
    name = FILES.get(product_of(job.stages), "")
    if not name or not (job.out / name).exists():
        return Samples()
    files = {(f.file.source, f.file.media_path): f.file for f in job.files}
    rows = list(few_of(job.out / name))
    media = [(files.get((row["source"], row["media_path"])), row) for row in rows]
    there = {at: (file.path, _moment(file, row)) for at, (file, row) in enumerate(media) if file}
    rows_shown = tuple((_name(row), _caption_text(row)) for row in rows)
    return Samples(rows=rows_shown, pictures=pictures_of(there))


def few_of(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield a few JSON lines, spread over a file, without loading it."""
    with open_regular(path) as file:
        last = sum(1 for _ in file) - 1
        file.seek(0)
        selected = {round(at * last / (SAMPLES - 1)) for at in range(SAMPLES)}
        for number, line in enumerate(file):
            if number in selected:
                yield json.loads(line)


def _moment(file: MediaFile, row: Mapping[str, Any]) -> float | None:
    """Return the time of the frame to show: the middle one of those that the model got."""
    if file.kind == "image":
        return None
    if "time" in row:
        return float(row["time"] or 0.0)
    frames = row["frames"] or [row["start"]]
    return float(frames[len(frames) // 2])


def _name(row: Mapping[str, Any]) -> str:
    """Return a medium's name and the time span of the row."""
    start, end = (row["time"],) * 2 if "time" in row else (row["start"], row["end"])
    if not start and not end:
        return str(row["media_path"])
    when = f"{start:.1f} s" if start == end else f"{start:.1f} to {end:.1f} s"
    return f"{row['media_path']}, {when}"


def _caption_text(row: Mapping[str, Any]) -> str:
    """Return a caption, with its prompt's name if there are several, or the given labels."""
    if "labels" in row:
        given = [label["label"] for label in row["labels"] if label["passed"]]
        text = ", ".join(given) or f"no label (most like {row['top']})"
    else:
        text = f"{row['name']}: {row['caption']}" if row.get("name") else str(row["caption"])
    return text if len(text) <= MAX_LETTERS else f"{text[:MAX_LETTERS]}…"


logger = logging.getLogger(__name__)

REPORT = "report.html"


NONE = Samples()


class RunPage:
    """One page per flow run, written when work begins, and updated when a stage begins and when the
    run ends. A retry of the run continues the page of the first attempt. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._record: RunRecord | None = None
        self._artifact: UUID | None = None

    def begin(self, job: Job, record: RunRecord) -> None:
        """Write the page, and note the flow run's id in the run record."""
        self._job, self._record = job, record
        record.value["prefect"] = {"id": str(flow_run.id), "name": str(flow_run.name)}
        self._show(record)

    def update(self) -> None:
        """Update the page without waiting, unless the run has ended. Before the first stage it is
        not known what the store has already."""
        threading.Thread(target=copy_context().run, args=(self._update,), daemon=True).start()

    def _update(self) -> None:
        with self._lock:
            if self._record is not None:
                self._show(self._record)

    def end(self) -> None:
        """Update the page with the result and samples, if the run has begun."""
        with self._lock:
            record, self._record = self._record, None
            if record is None or self._job is None:
                return
            samples = NONE
            try:
                samples = samples_of(self._job)
            except Exception as error:  # such as files that were changed in the meantime
                logger.warning("no samples on the page: %s", error)
            self._show(record, samples)

    def _show(self, record: RunRecord, samples: Samples = NONE) -> None:
        """Write the page. If the server does not respond, the run continues without it."""
        try:
            with without_retries():
                self._write(page(record.value, time.time(), samples))
        except Exception as error:
            logger.warning("the page of the run was not stored: %s", error)

    def _write(self, text: str) -> None:
        self._artifact = self._artifact or page_before()
        if self._artifact is None:
            made = create_markdown_artifact(text, key=KEY, description="State of the run")
            assert isinstance(made, UUID)  # it is a coroutine only for async callers
            self._artifact = made
            return
        with get_client(sync_client=True) as client:
            client.update_artifact(self._artifact, ArtifactUpdate(data=text))


def page_before() -> UUID | None:
    """Return the page of an earlier attempt of the current flow run."""
    if int(flow_run.run_count or 0) < 2:
        return None
    with get_client(sync_client=True) as client:
        return next((page.id for page in pages_of(client, [UUID(str(flow_run.id))])), None)


def page(record: Mapping[str, Any], now: float, samples: Samples = NONE) -> str:
    """Return the run record and samples in markdown. Long texts are lines, which wrap: Prefect cuts
    table cells at the page's edge."""
    failures = [(f["media_path"], f"{f['message']}. {f['hint']}") for f in record["failures"]]
    rest = record["media"]["failed"] - len(failures)
    if rest > 0:
        failures.append((f"{rest} more", "Read failures.jsonl"))
    parts = [
        f"**{record['state']}**",
        *filter(None, map(plain, (record["error"], advice(record)))),
        "".join(f"- {plain(line)}\n" for line in description_lines(record)),
        grid(COLUMNS, map(cells, stages_of(record, now))),
        *map(sample, samples.rows, map(samples.pictures.get, range(len(samples.rows)))),
        *listed("Outputs", {**output_paths(record), **report_place(record)}.items()),
        *listed("Failed", failures),
    ]
    return "\n\n".join(parts) + "\n"


def report_place(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the path of a run's report, or the command that writes one."""
    if not (failures := record["outputs"].get("failures")):
        return {}
    out = Path(failures).parent
    there = out / REPORT
    return {
        "HTML report": str(there) if there.is_file() else f"penstock report {shlex.quote(str(out))}"
    }


def sample(row: Sequence[str], picture: bytes | None) -> str:
    """Return a sample in markdown: its thumbnail if there is one, its name and its text."""
    shown = f"![](data:image/jpeg;base64,{base64.b64encode(picture).decode()})" if picture else ""
    name, text = map(plain, row)
    return "\n\n".join(filter(None, (shown, name, f"> {text}")))


def listed(title: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the parts of a list of names, each with a text; empty without rows."""
    lines = [f"- {plain(f'{name}: {text}')}" for name, text in rows]
    return [f"**{title}**", "\n".join(lines)] if lines else []


def grid(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in markdown with escaped cells."""
    lines = [head, ["---"] * len(head), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    return plain(text).replace("|", "\\|")

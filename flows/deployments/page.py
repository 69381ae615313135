"""Writes the page of a run in Prefect's UI: plan, stages, memory peaks, sample outputs, failures
and output paths.

Both of Prefect's UIs show images in `data:` URLs, checked in Chromium with 3.8.8. Browsers do not
follow links from there to files, so paths are shown as text.
"""

import base64
import json
import logging
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.runtime import flow_run

from artifacts.regular_files import open_regular
from flows.deployments.crashed import KEY, pages_of
from flows.deployments.patience import impatient
from flows.deployments.pictures import pictures_of
from flows.deployments.view import plain
from flows.job.prepare import Job
from flows.media.media_files import MediaFile
from flows.pipelines import CAPTION, LABELS, product_of
from flows.results.labels.writing import LINES
from flows.results.run_record import RunRecord
from flows.results.status import COLUMNS, advice, cells, description_lines, output_paths, stages_of

SAMPLES = 6
MOST_LETTERS = 400
"""Letters of a caption that are shown: a page is to be read at one glance."""
FILES = {product_of(CAPTION): "captions.jsonl", LABELS: LINES}
"""What a run makes → the file whose lines are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """The captions of a few media, with thumbnails of those that could be decoded."""

    rows: tuple[tuple[str, str], ...] = ()
    """Name and what was said of it, each."""
    pictures: Mapping[int, bytes] = field(default_factory=dict)
    """Place of a row → a JPEG."""


def samples_of(job: Job) -> Samples:
    """Return the first, the last and some between of what a run wrote. Raises what reading it
    raises."""
    name = FILES.get(product_of(job.stages), "")
    if not name or not (job.out / name).exists():
        return Samples()
    files = {(file.source, file.media_path): file for file in job.files}
    rows = list(few_of(job.out / name))
    media = [(files.get((row["source"], row["media_path"])), row) for row in rows]
    there = {at: (file.path, _moment(file, row)) for at, (file, row) in enumerate(media) if file}
    said = tuple((_name(row), _said(row)) for row in rows)
    return Samples(rows=said, pictures=pictures_of(there))


def few_of(path: Path, most: int = SAMPLES) -> Iterator[Mapping[str, Any]]:
    """Yield a few lines of JSON, spread over a file, which is not held in memory."""
    with open_regular(path) as file:
        last = sum(1 for _ in file) - 1
        file.seek(0)
        wanted = {round(at * last / max(1, most - 1)) for at in range(most)}
        for number, line in enumerate(file):
            if number in wanted:
                yield json.loads(line)


def _moment(file: MediaFile, row: Mapping[str, Any]) -> float | None:
    """Return which frame of a video is shown: of those that the model saw, one in the middle."""
    if file.kind == "image":
        return None
    if "time" in row:
        return float(row["time"] or 0.0)
    frames = row["frames"] or [row["start"]]
    return float(frames[len(frames) // 2])


def _name(row: Mapping[str, Any]) -> str:
    """Return a medium's name, and from when on it is spoken of."""
    start, end = (row["time"],) * 2 if "time" in row else (row["start"], row["end"])
    if not start and not end:
        return str(row["media_path"])
    when = f"{start:.1f} s" if start == end else f"{start:.1f} to {end:.1f} s"
    return f"{row['media_path']}, {when}"


def _said(row: Mapping[str, Any]) -> str:
    """Return a caption, with its prompt's name where there are several, or the labels given."""
    if "labels" in row:
        given = [label["label"] for label in row["labels"] if label["passed"]]
        said = ", ".join(given) or f"no label (most like {row['top']})"
    else:
        said = f"{row['name']}: {row['caption']}" if row.get("name") else str(row["caption"])
    return said if len(said) <= MOST_LETTERS else f"{said[:MOST_LETTERS]}…"


logger = logging.getLogger(__name__)

REPORT = "report.html"


NONE = Samples()


class RunPage:
    """One page per flow run, written when work begins and updated when it ends. A retry of the run
    continues the page of the first attempt."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._record: RunRecord | None = None
        self._artifact: UUID | None = None

    def begin(self, job: Job, record: RunRecord) -> None:
        """Show a run, and let its record say which flow run it is."""
        self._job, self._record = job, record
        record.value["prefect"] = {"id": str(flow_run.id), "name": str(flow_run.name)}
        record.write(force=True)
        self._show(record)

    def end(self) -> None:
        """Show what became of it, with samples; nothing when it never began."""
        if self._record is None or self._job is None:
            return
        samples = NONE
        try:
            samples = samples_of(self._job)
        except Exception as error:  # of files that somebody changed meanwhile
            logger.warning("no samples are shown: %s", error)
        self._show(self._record, samples)

    def _show(self, record: RunRecord, samples: Samples = NONE) -> None:
        """Show the page; a server that does not answer costs the page, not the run."""
        try:
            with impatient():
                self._write(page(record.value, time.time(), samples))
        except Exception as error:
            logger.warning("the page of the run was not taken: %s", error)

    def _write(self, text: str) -> None:
        self._artifact = self._artifact or page_before()
        if self._artifact is None:
            made = create_markdown_artifact(text, key=KEY, description="How the run stands")
            assert isinstance(made, UUID)  # a coroutine only where the caller is one
            self._artifact = made
            return
        with get_client(sync_client=True) as client:
            client.update_artifact(self._artifact, ArtifactUpdate(data=text))


def page_before() -> UUID | None:
    """Return the page that an earlier attempt of the flow run that is going on has left."""
    if int(flow_run.run_count or 0) < 2:
        return None
    with get_client(sync_client=True) as client:
        return next((page.id for page in pages_of(client, [UUID(str(flow_run.id))])), None)


def page(record: Mapping[str, Any], now: float, samples: Samples = NONE) -> str:
    """Return the record in markdown, with samples. Texts of any length stand in lines, which wrap:
    Prefect cuts the cells of a table at the page's edge."""
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
    """Return where the report of a run lies, or what writes one."""
    if not (failures := record["outputs"].get("failures")):
        return {}
    out = Path(failures).parent
    there = out / REPORT
    return {
        "HTML report": str(there) if there.is_file() else f"penstock report {shlex.quote(str(out))}"
    }


def sample(row: Sequence[str], picture: bytes | None) -> str:
    """Return a sample: its picture, where there is one, its name, and under that what was said."""
    shown = f"![](data:image/jpeg;base64,{base64.b64encode(picture).decode()})" if picture else ""
    name, said = map(plain, row)
    return "\n\n".join(filter(None, (shown, name, f"> {said}")))


def listed(title: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the parts of a list of names, each with a text; none without rows."""
    lines = [f"- {plain(f'{name}: {text}')}" for name, text in rows]
    return [f"**{title}**", "\n".join(lines)] if lines else []


def grid(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in markdown, whose cells no text can leave."""
    lines = [head, ["---"] * len(head), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Return a text in a cell."""
    return plain(text).replace("|", "\\|")

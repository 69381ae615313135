"""Writes the page that Prefect's UI shows of a run; knows no flow and no stage. It has plan,
stages, peaks, samples of what was made, failures and where the outputs are.

Both of Prefect's UIs show pictures in `data:`, seen in Chromium with 3.8.8. No browser follows a
link from there to a file, so paths stand there as text.
"""

import base64
import logging
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.runtime import flow_run

from flows.deployments.crashed import KEY, pages_of
from flows.deployments.patience import impatient
from flows.deployments.samples import Samples, samples_of
from flows.deployments.view import plain
from flows.job.prepare import Job
from flows.results.run_record import RunRecord
from flows.results.status import COLUMNS, advice, cells, places, stages_of, what

logger = logging.getLogger(__name__)

REPORT = "report.html"


NONE = Samples()


class RunPage:
    """One page a flow run, written when work begins and brought up to date when it ends. Another
    attempt of the run goes on with the page of the one before."""

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
        "".join(f"- {plain(line)}\n" for line in what(record)),
        grid(COLUMNS, map(cells, stages_of(record, now))),
        *map(sample, samples.rows, map(samples.pictures.get, range(len(samples.rows)))),
        *listed("Outputs", {**places(record), **report_place(record)}.items()),
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

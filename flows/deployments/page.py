"""Writes the page that Prefect's UI shows of a run; knows no flow and no stage. It has plan,
stages, peaks, failures and where the outputs are."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.runtime import flow_run

from flows.deployments.patience import impatient
from flows.deployments.view import plain
from flows.job.prepare import Job
from flows.results.run_record import RunRecord
from flows.results.status import COLUMNS, advice, cells, places, stages_of, what

logger = logging.getLogger(__name__)

KEY = "penstock-run"


class RunPage:
    """One page a flow run, written when work begins and brought up to date when it ends."""

    def __init__(self) -> None:
        self._record: RunRecord | None = None
        self._artifact: UUID | None = None

    def begin(self, _: Job, record: RunRecord) -> None:
        """Show a run, and let its record say which flow run it is."""
        self._record = record
        record.value["prefect"] = {"id": str(flow_run.id), "name": str(flow_run.name)}
        record.write(force=True)
        self._show(record)

    def end(self) -> None:
        """Show what became of it; nothing when it never began."""
        if self._record is not None:
            self._show(self._record)

    def _show(self, record: RunRecord) -> None:
        """Show the page; a server that does not answer costs the page, not the run."""
        try:
            with impatient():
                self._write(page(record.value, time.time()))
        except Exception as error:
            logger.warning("the page of the run was not taken: %s", error)

    def _write(self, text: str) -> None:
        if self._artifact is None:
            made = create_markdown_artifact(text, key=KEY, description="How the run stands")
            assert isinstance(made, UUID)  # a coroutine only where the caller is one
            self._artifact = made
            return
        with get_client(sync_client=True) as client:
            client.update_artifact(self._artifact, ArtifactUpdate(data=text))


def page(record: Mapping[str, Any], now: float) -> str:
    """Return the record in markdown."""
    failures = [[f["media_path"], f["message"], f["hint"]] for f in record["failures"]]
    rest = record["media"]["failed"] - len(failures)
    if rest > 0:
        failures.append([f"{rest} more", "", "Read failures.jsonl"])
    parts = [
        f"**{record['state']}**",
        *filter(None, map(plain, (record["error"], advice(record)))),
        "".join(f"- {plain(line)}\n" for line in what(record)),
        grid(COLUMNS, map(cells, stages_of(record, now))),
        grid(("output", "where"), places(record).items()),
    ]
    if failures:
        parts.append(grid(("failed", "what", "what to do"), failures))
    return "\n\n".join(parts) + "\n"


def grid(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in markdown, whose cells no text can leave."""
    lines = [head, ["---"] * len(head), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Return a text in a cell."""
    return plain(text).replace("|", "\\|")

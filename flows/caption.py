"""The caption run as a Prefect flow: one task a stage, progress and a table in the UI, the very
same sequence."""

import os

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from artifacts.errors import UsageError
from flows.config import CaptionConfig
from flows.display import Display
from flows.launch import ENTRIES, StageCall
from flows.run import caption
from flows.sequence import RunResult
from stages.process.stage_process import Listener, StageOutcome, StageProcess

PROGRESS_SECONDS = 2.0
"""How often a stage's progress is sent to the server."""
TABLE_ROWS = 200
"""Rows of the UI's table; the rest is in the output files."""

_display: ContextVar[Display | None] = ContextVar("display", default=None)


class PrefectLauncher:
    """Starts each stage inside a task of the flow run that is going on."""

    def __init__(self, listen: Listener) -> None:
        self._listen = listen

    def start(self, call: StageCall) -> "PrefectRunning":
        return PrefectRunning(call, self._listen)


class PrefectRunning:
    """A stage in a task: started, awaited and reported on one thread, which the child's life is
    tied to."""

    def __init__(self, call: StageCall, listen: Listener) -> None:
        self._call = call
        self._listen = listen
        self._done = 0
        self._total = 0
        self._process: StageProcess | None = None
        stage = task(
            name=call.name, task_run_name=call.name, cache_policy=NO_CACHE, persist_result=False
        )(self._run)
        self._future: PrefectFuture[StageOutcome] = stage.submit()

    def wait(self) -> StageOutcome:
        return self._future.result()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def _run(self) -> StageOutcome:
        call = self._call
        self._process = process = StageProcess(
            call.name,
            ENTRIES[call.name],
            call.arguments,
            device=call.device,
            log=call.log,
            listen=self._count,
        )
        artifact = create_progress_artifact(0.0, key=f"penstock-{call.name}", description=call.name)
        assert isinstance(artifact, UUID)  # a coroutine only where the caller is one
        while not process.ended(PROGRESS_SECONDS):
            update_progress_artifact(artifact, 100 * self._done / max(1, self._total))
        outcome = process.wait()
        update_progress_artifact(artifact, 100.0)
        return outcome

    def _count(self, stage: str, event: Mapping[str, Any]) -> None:
        if event["event"] == "item":
            self._done += 1
        elif event["event"] == "total":
            self._total = event["items"]
        self._listen(stage, event)


@flow(name="caption-videos", persist_result=False)
def caption_videos(config: CaptionConfig) -> RunResult:
    """Caption everything that `config` names; its fields are the command line's options."""
    result = caption(config, _display.get() or Display(), PrefectLauncher)
    create_table_artifact(table=table(result), key="penstock-captions", description=result.line())
    if result.exit_code >= 2:
        raise UsageError(result.line(), hint=f"Read {result.out / 'failures.jsonl'}")
    return result


def table(result: RunResult) -> list[dict[str, Any]]:
    """What failed and why, for the UI; names and messages as plain text."""
    rows = [
        {"file": plain(f.media_path), "what": plain(f.message), "what to do": plain(f.hint)}
        for f in result.failures[:TABLE_ROWS]
    ]
    return rows or [{"file": "all", "what": result.line(), "what to do": str(result.out)}]


def plain(text: str) -> str:
    """Text that a table of markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|#!" else c for c in text)


def run_with_prefect(config: CaptionConfig, display: Display) -> RunResult:
    """The flow, called from the command line. Raises PenstockError."""
    _display.set(display)
    return caption_videos(config)

"""Starts each stage as a task of the current flow run, and reports its progress."""

import logging
import os
import threading
from concurrent import futures
from typing import Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Failed

from artifacts.errors import Interrupted, PenstockError
from flows.deployments.crashed import close_earlier_attempts
from flows.deployments.view import Progress
from flows.machine.launch import DirectLauncher, StageCall
from stages.process.events import Event, Item, Total
from stages.process.outcome import StageOutcome
from stages.process.stage_process import Listener, StageProcess


def without_empty_traceback(record: logging.LogRecord) -> bool:
    """Remove `NoneType: None`, which Prefect logs for a task that returns Failed."""
    record.exc_info = record.exc_info if record.exc_info and record.exc_info[0] else None
    return True


logging.getLogger("prefect.task_runs").addFilter(without_empty_traceback)
PROGRESS_SECONDS = float(os.environ.get("PENSTOCK_PROGRESS_SECONDS") or 2.0)
"""Interval in seconds of progress reports to the server; with many workers, choose a longer one."""


class PrefectLauncher:
    """A launcher that starts each stage inside a task of the current flow run."""

    def __init__(self, listen: Listener) -> None:
        self._listen = listen
        close_earlier_attempts()

    def start(self, call: StageCall) -> "PrefectRunning":
        return PrefectRunning(call, self._listen)


class PrefectRunning:
    """A stage in a task. One thread starts it, waits for it and reports on it, because the child
    process ends with that thread."""

    def __init__(self, call: StageCall, listen: Listener) -> None:
        self._call = call
        self._listen = listen
        self._done = 0
        self._total = 0
        self._lock = threading.Lock()
        self._stopped = False
        self._process: StageProcess | None = None
        stage = task(
            name=call.name, task_run_name=call.name, cache_policy=NO_CACHE, persist_result=False
        )(self._run)
        self._future: PrefectConcurrentFuture[Any] = stage.submit()  # type: ignore[assignment]

    @property
    def outcome(self) -> StageOutcome:
        return self._process.outcome if self._process else StageOutcome(name=self._call.name)

    def wait(self) -> StageOutcome:
        outcome: StageOutcome = self._future.result()
        return outcome

    def wait_for_exit(self, seconds: float) -> bool:
        return bool(futures.wait([self._future.wrapped_future], seconds).done)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        if self._process is not None:
            self._process.stop()

    def _run(self) -> StageOutcome | State[Any]:
        process = self._start()
        progress = Progress(self._call.name)
        try:
            while not process.wait_for_exit(PROGRESS_SECONDS):
                progress.report(self._done, self._total)
            outcome = process.wait()
            progress.report(self._done, self._done)
            return outcome
        except PenstockError as error:
            return Failed(message=str(error), data=error)  # raising would log a traceback
        finally:
            process.stop()
            progress.close()

    def _start(self) -> StageProcess:
        call = self._call
        with self._lock:
            if self._stopped:
                raise Interrupted(f"the {call.name} stage was stopped before it started")
            self._process = DirectLauncher(self._count).start(call)
            return self._process

    def _count(self, stage: str, event: Event) -> None:
        if isinstance(event, Item):
            self._done += 1
        elif isinstance(event, Total):
            self._total = event.items
        self._listen(stage, event)

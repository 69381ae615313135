"""Runs one pipeline inside a flow, from its configuration to the flow's state. Knows neither stages
nor what they make: the sequence is the plain command's."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prefect import State, get_run_logger

from artifacts.errors import PenstockError
from flows.console.display import Display
from flows.deployments.confine import confine
from flows.deployments.endings import Outcome, ended, ended_by
from flows.deployments.page import RunPage
from flows.deployments.tasks import PrefectLauncher
from flows.deployments.view import RunLog
from flows.job.config import CaptionConfig
from flows.results.run_result import RunResult
from flows.running.run import LauncherMaker
from flows.running.watch import OnBegin


class PipelineResult(Outcome, Protocol):
    """The end of a run that wrote files into a folder."""

    @property
    def out(self) -> Path: ...

    @property
    def made(self) -> int:
        """Return the number of rows that it wrote."""


Config = TypeVar("Config", bound=CaptionConfig)
Runner = Callable[[Config, Display, LauncherMaker, OnBegin], PipelineResult]
"""Function that runs a pipeline, such as those of `flows/running/run.py`."""


@dataclass(kw_only=True, slots=True)
class Caller:
    """The command line, when it runs the flow inside itself."""

    display: Display
    result: RunResult | None = None
    """Result that the flow sets: results do not travel through Prefect."""


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def run_in_flow(config: Config, run: Runner[Config], makes: str) -> State[Any]:
    """Run a pipeline in the flow run that is going on, and return the state that it ends in. The
    table in the UI is called by what it makes."""
    caller = CALLER.get()
    display = caller.display if caller else Display(to=RunLog(get_run_logger()))
    page, key = RunPage(), f"penstock-{makes}"
    try:
        if caller is None:
            confine(config)
        result = run(config, display, PrefectLauncher, page.begin)
    except PenstockError as error:
        return ended_by(error, key, page)
    except BaseException:
        page.end()  # or it would say for good that the run is going on
        raise
    if caller and isinstance(result, RunResult):
        caller.result = result
    hint = f"Read {result.out / 'failures.jsonl'}"
    return ended(result, key, page, nothing_hint="" if result.made else hint)

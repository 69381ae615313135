"""A whole caption run in this process: the flow, the stages and the store are the program's own,
and only the child processes are spared."""

import json
import os
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib import import_module
from io import StringIO
from typing import TYPE_CHECKING, Any, ClassVar

from flows.core.console.display import Display
from flows.core.machine.launch import ENTRIES, DirectLauncher, StageCall
from flows.execution.run import caption
from flows.outputs.run_result import RunResult
from stages.process.events import (
    Answered,
    Event,
    EventReporter,
    Failed,
    StageNotes,
    StageOutcome,
    event_of,
)
from stages.process.job import job_fields
from stages.process.stage_process import Listener
from tests.support.pipeline import Place

if TYPE_CHECKING:  # benchmarks use this module, too
    import pytest


@dataclass(kw_only=True, slots=True)
class Ran:
    """What one run did."""

    result: RunResult
    said: str
    """All that a person is told."""
    started: list[str]
    """Stages, in the order in which they were started."""


@dataclass(kw_only=True, slots=True)
class Ended:
    """A stage that was run to its end when it was started."""

    outcome: StageOutcome

    def wait(self) -> StageOutcome:
        return self.outcome

    def wait_for_exit(self, seconds: float) -> bool:
        return True

    def stop(self) -> None: ...


@dataclass(kw_only=True, slots=True)
class InsideLauncher:
    """Runs each stage as a function of this process."""

    listen: Listener = lambda *_: None
    started: list[str] = field(default_factory=list)
    profiles: ClassVar[dict[str, StageOutcome]] = {}
    """What `describe` told of the same files in this process of the tests."""

    def start(self, call: StageCall) -> Ended:
        if getattr(call.job, "requests", ""):
            if call.name != "frames":  # nothing is encoded while frames are cut
                return Ended(outcome=StageOutcome(name=call.name))
            job: Any = call.job  # each wave has a process
            call = replace(call, job=replace(job, requests=""))
        self.started.append(call.name)
        same = json.dumps([call.name, job_fields(call.job)])
        if same in self.profiles:
            return Ended(outcome=deepcopy(self.profiles[same]))
        module, _, name = ENTRIES[call.name].partition(":")
        run = getattr(import_module(module), name)
        outcome = StageOutcome(name=call.name)
        descriptor = os.memfd_create("events")
        arguments = json.loads(same)[1]
        half = arguments.get("half", arguments)
        if "device" in half:
            half["device"] = call.device
        with closing(os.fdopen(descriptor, "rb", closefd=True)) as file:
            run(arguments, EventReporter(descriptor))
            file.seek(0)
            for line in file:
                if (event := event_of(line.decode())) is not None:
                    self._take(outcome, event)
        if call.name == "describe":
            self.profiles[same] = deepcopy(outcome)
        return Ended(outcome=outcome)

    def _take(self, outcome: StageOutcome, event: Event) -> None:
        if isinstance(event, Answered):
            outcome.items += len(event.keys)
            outcome.tokens += event.tokens
        elif isinstance(event, StageNotes):
            outcome.notes.update(event.values)
        elif isinstance(event, Failed):
            outcome.failures.append(event)
        self.listen(outcome.name, event)


def stages_inside(patch: "pytest.MonkeyPatch") -> None:
    """Let the stages of commands run in this process."""

    def start(launcher: DirectLauncher, call: StageCall) -> Ended:
        return InsideLauncher(listen=launcher._on_event).start(call)

    patch.setattr(DirectLauncher, "start", start)


def run_inside(place: Place, **options: Any) -> Ran:
    """Caption a place's clips with these fields of the configuration. Raises PenstockError."""
    return run_through(InsideLauncher(), place, **options)


def run_through(launcher: InsideLauncher, place: Place, **options: Any) -> Ran:
    """Caption a place's clips, its stages started by this launcher. Raises PenstockError."""
    heard = StringIO()

    def make(listen: Listener) -> InsideLauncher:
        launcher.listen = listen
        return launcher

    result = caption(place.config(**options), Display(to=heard), make)
    return Ran(result=result, said=heard.getvalue(), started=launcher.started)

"""A stage that runs out of memory is started again with less, whatever it makes; one that is killed
is started again a few times."""

from types import SimpleNamespace
from typing import Any

import pytest

from artifacts.errors import CannotFit, Interrupted, Killed, PenstockError, StageDied
from flows.core.machine.launch import MAX_RESTARTS, with_restarts
from flows.core.plan.ladder import Rung
from flows.execution.stage_loop import Attempt, StageLoop, crash_suspects
from stages import encode, frames
from stages.process.events import StageOutcome
from stages.process.stage_spec import StageSpec

NO_MEMORY = CannotFit("out of memory", hint="")
CRASHED = StageDied("crashed", hint="", return_code=-11)


class Process:
    """A stage process that ends with an error, or makes one item."""

    def __init__(self, error: PenstockError | None) -> None:
        self.error = error
        self.outcome = StageOutcome(name="", items=error is None)
        self.stopped = False

    def wait(self) -> StageOutcome:
        if self.error is not None:
            raise self.error
        return self.outcome

    def wait_for_exit(self, seconds: float) -> bool:
        return True

    def stop(self) -> None:
        self.stopped = True


class Run:
    """A run whose processes end with these errors, in order; None: success."""

    def __init__(self, stage: StageSpec, *errors: PenstockError | None) -> None:
        self.stage = stage
        self.processes = [Process(error) for error in errors]
        self.started: list[int] = []
        """Batch size of each process."""
        self.recorded: list[Process] = []
        self.steps: list[dict[str, Any]] = []
        self.variants = 0
        self._batch = 8

    def attempt(self) -> Attempt | None:
        if len(self.started) == len(self.processes):
            return None
        rung = Rung(stage=self.stage.name, batch=self._batch)
        return self.loop.start(self.stage, rung, lambda: "call", total=1)  # type: ignore[arg-type, return-value]

    @property
    def loop(self) -> StageLoop:
        ledger = SimpleNamespace(variant=SimpleNamespace(precision={}), use_precision=self._select)
        part = SimpleNamespace(precision="", kv="", attention="sdpa", label="")
        fakes: dict[str, Any] = {
            "job": SimpleNamespace(
                ledger=ledger, pipeline=(), model=SimpleNamespace(settings={"vision": [part]})
            ),
            "launcher": SimpleNamespace(start=self._start),
            "writer": SimpleNamespace(add=self._record),
            "ladder": SimpleNamespace(begin=lambda name: None, step_down=self._step_down),
            "capacity": None,
        }
        return StageLoop(**fakes, on_start=lambda *_: None, fetch=lambda parts: None)

    def _start(self, call: object) -> Process:
        self.started.append(self._batch)
        return self.processes[len(self.started) - 1]

    def _record(self, outcome: StageOutcome, **settings: Any) -> None:
        self.recorded += [each for each in self.processes if each.outcome is outcome]

    def _step_down(self, stage: str, error: CannotFit, *, advise: object, **how: Any) -> None:
        self.steps.append(how)
        self._batch //= 2

    def _select(self, precision: object) -> None:
        self.variants += 1


@pytest.mark.parametrize(("stage", "ready"), [(frames.STAGE, True), (encode.STAGE, False)])
def test_a_stage_out_of_memory_starts_again_one_rung_lower(stage: StageSpec, ready: bool) -> None:
    run = Run(stage, NO_MEMORY, NO_MEMORY, None, None)
    outcome = run.loop.until_done(run.attempt)
    assert run.started == [8, 4, 2] and outcome is run.processes[2].outcome
    assert run.steps == [{"largest": batch, "tokens": 0, "ready": ready} for batch in (8, 4)]
    assert run.variants == 2 and run.recorded == run.processes[:3]


def test_a_stage_goes_on_until_it_is_done_or_nothing_is_left() -> None:
    run = Run(frames.STAGE, None, None, None)
    run.loop.until_done(run.attempt, is_done=lambda attempt: len(run.started) == 2)
    assert run.started == [8, 8]
    assert run.loop.until_done(run.attempt, is_done=lambda attempt: False) is None
    assert run.started == [8, 8, 8]


def test_an_error_that_its_caller_solves_takes_no_step_down() -> None:
    run = Run(frames.STAGE, CRASHED, NO_MEMORY, None)
    run.loop.until_done(run.attempt, is_solved=lambda attempt, error: True)
    assert run.started == [8, 8, 8] and run.steps == []


@pytest.mark.parametrize("error", [CRASHED, Interrupted("stopped", hint="")])
def test_another_error_ends_the_stage_and_leaves_no_process(error: PenstockError) -> None:
    run = Run(frames.STAGE, error, None)
    with pytest.raises(type(error)):
        run.loop.until_done(run.attempt)
    assert run.started == [8] and run.steps == []
    assert run.processes[0].stopped and run.recorded == run.processes[:1]


def test_only_open_media_of_a_crash_are_suspects() -> None:
    media: list[Any] = [SimpleNamespace(digest=digest) for digest in "ab"]
    outcome = StageOutcome(name="", open_media={"b"})
    for error in (CRASHED, NO_MEMORY):
        assert crash_suspects(error, outcome, media) == media[1:]
    assert crash_suspects(StageDied("failed", hint=""), outcome, media) == []


def test_what_is_killed_again_and_again_ends() -> None:
    calls: list[int] = []

    def attempt() -> None:
        calls.append(len(calls))
        # Every third one has made something before it was killed.
        raise Killed("killed", hint="", items=len(calls) == 3)

    with pytest.raises(Killed):
        with_restarts(attempt)
    assert len(calls) == 3 + MAX_RESTARTS + 1


def test_only_named_errors_start_something_again() -> None:
    with pytest.raises(CannotFit):
        with_restarts(Process(NO_MEMORY).wait)

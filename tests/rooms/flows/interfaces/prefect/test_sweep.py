"""Which crashed runs are started again, and what earlier attempts leave open."""

import logging
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, ClassVar, Self
from uuid import UUID, uuid4

import pytest
from prefect import State
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Crashed, Scheduled

from flows.interfaces.prefect import crashed, sweep
from flows.interfaces.prefect.crashed import close_earlier_attempts
from flows.interfaces.prefect.runs import INTERRUPTED
from flows.interfaces.prefect.sweep import verdicts

SWEPT_AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
FLOW, DEPLOYED = uuid4(), uuid4()


def run(name: str, state: str, *, minutes: float = 60, **more: Any) -> FlowRun:
    """Return a run that was due `minutes` ago and reached its state a minute later."""
    types = {INTERRUPTED: "FAILED", "Late": "SCHEDULED"}
    began = SWEPT_AT - timedelta(minutes=minutes)
    return FlowRun.model_validate(
        {
            "id": str(uuid4()),
            "name": name,
            "flow_id": str(FLOW),
            "deployment_id": str(DEPLOYED),
            "parameters": {"config": {"sources": ["a"], "out": "b"}},
            "run_count": 1,
            "expected_start_time": began.isoformat(),
            "state": {
                "type": types.get(state, state.upper()),
                "name": state,
                "timestamp": (began + timedelta(minutes=1)).isoformat(),
            },
            **more,
        }
    )


def swept(*runs: FlowRun) -> dict[str, str]:
    """Run → why it is left alone."""
    found = verdicts(runs, now=SWEPT_AT, older_than=timedelta(seconds=60))
    return {run.name: why_not for run, why_not in found}


def test_runs_of_other_jobs_and_of_a_schedule_decide_nothing() -> None:
    others: list[FlowRun] = [
        run("new", "Completed", minutes=5, parameters={"config": {"sources": ["a"], "out": "c"}}),
        run("new", "Completed", minutes=5, deployment_id=str(UUID(int=1))),
        run("tomorrow", "Scheduled", minutes=-600),
    ]
    for other in others:
        assert swept(run("old", "Crashed"), other) == {"old": ""}


def test_only_runs_that_have_crashed_are_started_again() -> None:
    for state in ("Crashed", INTERRUPTED):
        assert swept(run("a", state)) == {"a": ""}
    for state in ("Completed", "Failed", "Cancelled", "Running", "Pending", "Late"):
        assert swept(run("a", state)) == {}
        (why,) = swept(run("newer", state, minutes=30), run("old", "Crashed")).values()
        assert "newer" in why
    found = swept(run("old", "Crashed"), run("newer", "Crashed", minutes=30))
    assert found["newer"] == "" and "same job" in found["old"]


def test_why_a_crashed_run_is_left_alone() -> None:
    assert "60 s" in swept(run("a", "Crashed", minutes=1.5))["a"]
    assert "by hand" in swept(run("a", "Crashed", deployment_id=None))["a"]


def test_a_run_that_dies_early_is_started_again_thrice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process ends before the server counts an attempt."""

    class Swept:
        states: ClassVar[list[State[Any]]] = [Scheduled(message="Flow run scheduled")]

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def read_flow_run(self, _: object) -> FlowRun:
            found = run("a", "Crashed", run_count=0, id=str(FLOW))
            return found.model_copy(update={"state": self.states[-1]})

        def read_flow_runs(self, **_: object) -> list[FlowRun]:
            return [self.read_flow_run(FLOW)]

        def read_flow_run_states(self, _: object) -> list[State[Any]]:
            return self.states

        def set_flow_run_state(self, _: object, state: State[Any], **__: object) -> Any:
            self.states.append(state)
            return SimpleNamespace(status=SetStateStatus.ACCEPT)

    lines: list[str] = []
    log = SimpleNamespace(info=lambda form, *values: lines.append(form % values))
    monkeypatch.setattr(sweep, "get_client", lambda **_: Swept())
    monkeypatch.setattr(sweep, "close_ended", lambda *_: 0)
    monkeypatch.setattr(sweep, "drop_late", lambda *_: None)
    monkeypatch.setattr(sweep, "get_run_logger", lambda: log)
    for _ in range(5):
        Swept.states.append(Crashed(message="Process exited with status code: 1"))
        end = sweep.sweep_crashed.fn(older_than_seconds=0.0, younger_than_hours=1e6)
    again = [f"a (Crashed) is started again, {time} of 3 times" for time in (1, 2, 3)]
    alone = "a (Crashed) is left alone: it was started again 3 times already; see why it ends"
    assert lines == [*again, alone, alone]
    assert end.message == "0 of 1 crashed runs started again"


@pytest.mark.logs_errors
def test_an_error_of_a_task_has_no_traceback_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect asks for one where a task returns Failed."""
    written: list[str] = []
    handler = logging.StreamHandler(SimpleNamespace(write=written.append, flush=lambda: None))
    log = logging.getLogger("prefect.task_runs")
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "propagate", False)
    log.error("the stage was stopped", exc_info=True)
    assert "".join(written) == "the stage was stopped\n"


def test_a_server_that_does_not_answer_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("gone")

    context = SimpleNamespace(flow_run=SimpleNamespace(id=UUID(int=1), run_count=2))
    monkeypatch.setattr(crashed, "get_client", refuse)
    monkeypatch.setattr("prefect.context.FlowRunContext.get", lambda: context)
    with caplog.at_level(logging.WARNING):
        close_earlier_attempts()
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith("gone")
    context.flow_run.run_count = 1
    close_earlier_attempts()  # which asks no server: there was no attempt before
    assert len(caplog.messages) == 1

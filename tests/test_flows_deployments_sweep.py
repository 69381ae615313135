"""Which crashed runs are started again, told from runs as Prefect's client gives them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from flows.deployments.endings import INTERRUPTED
from flows.deployments.sweep import verdicts

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
FLOW, DEPLOYMENT = uuid4(), uuid4()


def run(name: str, state: str, *, minutes: float = 60, **more: Any) -> FlowRun:
    """A run that was due so many minutes ago and ended, or came to where it is, a minute later."""
    types = {INTERRUPTED: "FAILED", "Late": "SCHEDULED", "AwaitingRetry": "SCHEDULED"}
    began = NOW - timedelta(minutes=minutes)
    return FlowRun.model_validate(
        {
            "id": str(uuid4()),
            "name": name,
            "flow_id": str(FLOW),
            "deployment_id": str(DEPLOYMENT),
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


def swept(*runs: FlowRun, max_retries: int = 3) -> dict[str, str]:
    """Run → why it is left alone."""
    found = verdicts(runs, now=NOW, max_retries=max_retries, older_than=timedelta(seconds=60))
    return {verdict.run.name: verdict.why_not for verdict in found}


@pytest.mark.parametrize("state", ["Crashed", INTERRUPTED])
def test_a_run_that_ended_unasked_is_started_again(state: str) -> None:
    assert swept(run("a", state)) == {"a": ""}


@pytest.mark.parametrize(
    "state", ["Completed", "Failed", "Cancelled", "Running", "Pending", "Late", "AwaitingRetry"]
)
def test_any_other_run_is_not(state: str) -> None:
    assert swept(run("a", state)) == {}


@pytest.mark.parametrize("newer", ["Completed", "Failed", "Running", "Late", "Cancelled"])
def test_of_a_job_the_newest_run_decides(newer: str) -> None:
    found = swept(run("newer", newer, minutes=30), run("old", "Crashed"))
    assert list(found) == ["old"]
    assert "newer" in found["old"]


def test_of_two_crashed_runs_of_a_job_the_newer_is_started_again() -> None:
    found = swept(run("old", "Crashed"), run("newer", "Crashed", minutes=30))
    assert found["newer"] == "" and "same job" in found["old"]


def test_runs_of_other_parameters_or_deployments_are_other_jobs() -> None:
    other: list[dict[str, Any]] = [
        {"parameters": {"config": {"sources": ["a"], "out": "c"}}},
        {"deployment_id": str(UUID(int=1))},
    ]
    for more in other:
        assert swept(run("old", "Crashed"), run("new", "Completed", minutes=5, **more)) == {
            "old": ""
        }


def test_what_a_schedule_will_start_later_decides_nothing_yet() -> None:
    later = run("tomorrow", "Scheduled", minutes=-600)
    assert swept(run("a", "Crashed"), later) == {"a": ""}


def test_a_run_is_started_again_a_few_times_only() -> None:
    assert swept(run("a", "Crashed", run_count=3)) == {"a": ""}
    assert "4 times" in swept(run("a", "Crashed", run_count=4))["a"]
    assert "started" in swept(run("a", "Crashed"), max_retries=0)["a"]


def test_a_run_that_ended_just_now_is_left_alone() -> None:
    assert "60 s" in swept(run("a", "Crashed", minutes=1.5))["a"]


def test_a_run_without_a_deployment_is_left_to_who_started_it() -> None:
    assert "by hand" in swept(run("a", "Crashed", deployment_id=None))["a"]

"""Portions of a run, handed out to a server made of a list of runs whose workers take them in turn,
crash, and are slow; and which crashed runs are started again."""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self, cast
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import State
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Crashed, Scheduled

from artifacts.errors import UsageError
from flows.deployments import crashed, handing, sweep
from flows.deployments.crashed import close_earlier_attempts
from flows.deployments.handing import AHEAD, STARTS, PartitionDispatch, PartitionRun
from flows.deployments.runs import INTERRUPTED
from flows.deployments.sweep import verdicts
from flows.job.partitions import Partition, cut, partitions_of
from flows.media.media_files import MediaFile
from flows.options.commands import CaptionConfig
from flows.options.vectors import LabelConfig
from flows.results.marker import Marker, write_marker

DEPLOYMENT = uuid4()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass
class Server:
    """Runs, and workers that each do one of them at a time; a question lasts a minute."""

    workers: int
    lasts: Callable[[str], int] = lambda _: 1
    """Name of a run → minutes that it works."""
    ends: Callable[[str], str] = lambda _: "COMPLETED"
    """Name of a run → how it ends."""
    runs: dict[UUID, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, UUID] = field(default_factory=dict)
    silent: int = 0
    """Questions that are not answered from now on."""
    most: int = 0
    """Runs that were neither ended nor begun, at the most."""
    minutes: float = 0.0

    def create_flow_run_from_deployment(
        self, deployment: UUID, *, name: str, idempotency_key: str, **more: Any
    ) -> FlowRun:
        assert deployment == DEPLOYMENT
        if idempotency_key not in self.keys:
            self.keys[idempotency_key] = (made := uuid4())
            run = {"id": made, "name": name, "state": "SCHEDULED", "left": self.lasts(name)}
            self.runs[made] = {**run, **more}
        open_ = sum(run["state"] not in ENDS for run in self.runs.values())
        self.most = max(self.most, open_)
        return self.seen(self.runs[self.keys[idempotency_key]])

    def read_flow_runs(self, *, flow_run_filter: Any, limit: int) -> list[FlowRun]:
        if self.silent:
            self.silent -= 1
            raise ConnectionError("away")
        self.work()
        return [self.seen(self.runs[one]) for one in flow_run_filter.id.any_ if one in self.runs]

    def read_workers_for_work_pool(self, pool: str) -> list[Any]:
        assert pool == "gpu"
        online = [SimpleNamespace(status=WorkerStatus.ONLINE)] * self.workers
        return [*online, SimpleNamespace(status=WorkerStatus.OFFLINE)]

    def work(self) -> None:
        self.minutes += 1
        running = [run for run in self.runs.values() if run["state"] == "RUNNING"]
        for run in running:
            run["left"] -= 1
            if run["left"] <= 0:
                run["state"] = self.ends(run["name"])
        free = self.workers - sum(run["state"] == "RUNNING" for run in running)
        waiting = [run for run in self.runs.values() if run["state"] == "SCHEDULED"]
        for run in waiting[:free]:
            run["state"] = "RUNNING"

    def seen(self, run: dict[str, Any]) -> FlowRun:
        state = {"type": run["state"], "name": run["state"].title(), "timestamp": NOW.isoformat()}
        messages = {"id": str(run["id"]), "name": run["name"], "flow_id": str(DEPLOYMENT)}
        return FlowRun.model_validate({**messages, "state": state, "tags": run.get("tags", [])})


@pytest.fixture(autouse=True)
def a_minute_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10**9, 60))
    waits = SimpleNamespace(sleep=lambda _: None, monotonic=lambda: float(next(now)))
    monkeypatch.setattr(handing, "time", waits)


def portions(count: int) -> list[Partition]:
    return [Partition(name=f"p{n}", path=Path(f"p{n}"), files=1, bytes=n) for n in range(count)]


def hand_out(
    server: Server, of: Iterable[Partition], job: str = "job", **more: Any
) -> list[PartitionRun]:
    messages: list[tuple[int, int]] = []

    def ask(portion: Partition, which: str) -> dict[str, Any]:
        return {"portion": portion.name, "which": which}

    dispatch = PartitionDispatch(cast(SyncPrefectClient, server), DEPLOYMENT, ask, job, **more)
    handed = dispatch.all(of, lambda *n: messages.append(n))
    assert messages[-1] == (len(handed), len(handed))
    return handed


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_all_are_done_once_the_largest_first_and_few_are_asked_for_at_a_time(workers: int) -> None:
    server = Server(workers)
    handed = hand_out(server, portions(40), helping=False)
    assert all(one.done for one in handed) and len(server.runs) == 40
    assert [run["name"] for run in server.runs.values()] == [f"p{n} 1" for n in range(39, -1, -1)]
    assert server.most <= AHEAD * workers


def test_who_hands_out_and_is_started_again_finds_the_runs_that_it_had_asked_for() -> None:
    server = Server(2)
    hand_out(server, portions(5))
    assert all(one.done for one in hand_out(server, portions(5))) and len(server.runs) == 5
    hand_out(server, portions(5), job="another")
    assert len(server.runs) == 10


def test_a_run_that_crashed_is_asked_for_again_a_few_times_and_any_other_end_is_its_end() -> None:
    ends = {"p0 1": "CRASHED", "p0 2": "CRASHED", "p1 1": "FAILED", "p2 1": "CANCELLED"}
    always = {f"p3 {n}": "CRASHED" for n in range(1, 9)}
    server = Server(2, ends=lambda name: {**ends, **always}.get(name, "COMPLETED"))
    handed = {one.portion.name: one for one in hand_out(server, portions(5))}
    assert (handed["p0"].done, handed["p0"].starts) == (True, 3)
    assert (handed["p3"].done, handed["p3"].starts) == (False, STARTS)
    assert "Failed" in handed["p1"].why and "Cancelled" in handed["p2"].why and handed["p4"].done


def test_the_last_portions_are_shared_by_workers_that_have_nothing_to_do() -> None:
    server = Server(4, lasts=lambda name: 30 if name == "p0 1" else 3)
    (slow, *_) = sorted(hand_out(server, portions(6)), key=lambda one: one.portion.name)
    assert slow.done and server.minutes < 20
    assert [run["parameters"]["which"] for run in server.runs.values()].count("help 1") >= 1
    alone = Server(4, lasts=lambda _: 9)
    hand_out(alone, portions(1), helping=False)
    assert len(alone.runs) == 1


def test_a_server_that_is_away_for_a_while_costs_turns_and_one_that_is_gone_ends_it() -> None:
    server = Server(2, silent=3)
    assert all(one.done for one in hand_out(server, portions(5)))
    with pytest.raises(ConnectionError):
        hand_out(Server(2, silent=10**6), portions(5))


def test_what_the_server_refuses_is_told_at_once_in_one_line() -> None:
    class Refusing(Server):
        def read_workers_for_work_pool(self, pool: str) -> list[Any]:
            answer = httpx.Response(
                422, text="fps:\n no number", request=httpx.Request("GET", "http://x")
            )
            raise PrefectHTTPStatusError("no", request=answer.request, response=answer)

    with pytest.raises(UsageError, match="refuses a partition: fps: no number"):
        hand_out(Refusing(1), portions(1))


def test_the_sweep_leaves_portions_to_who_handed_them_out() -> None:
    server = Server(1, ends=lambda name: "CRASHED" if name.endswith(" 1") else "COMPLETED")
    hand_out(server, portions(1))
    crashed = [server.seen(run) for run in server.runs.values() if run["state"] == "CRASHED"]
    crashed[0].deployment_id = DEPLOYMENT
    (verdict,) = verdicts(
        crashed,
        now=datetime.now(UTC),
        older_than=NOW - NOW,
    )
    assert "portion" in verdict.why_not


def test_the_cut_hangs_on_the_files_alone(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.mp4").write_bytes(bytes(number))
    (tmp_path / "more.jsonl").write_text('{"path": "3.mp4", "prompt": "What?"}\n')
    sources = (str(tmp_path / "?.mp4"), str(tmp_path / "more.jsonl"), str(tmp_path / "none.mp4"))
    config = CaptionConfig(sources=sources, model="demo", out=str(tmp_path / "out"))
    first, failures = partitions_of(config, 3)
    assert [(each.files, each.bytes) for each in first] == [(3, 3), (3, 12), (2, 9)]
    assert [failure.media_path for failure in failures] == [str(tmp_path / "none.mp4")]
    assert partitions_of(config, 3)[0] == first
    lines = [json.loads(line) for line in first[2].path.read_text().splitlines()]
    assert lines == [
        {"path": str(tmp_path / "6.mp4")},
        {"path": str(tmp_path / "3.mp4"), "prompt": "What?"},
    ]
    whole = CaptionConfig(sources=(first[2].source,), model="demo", out=str(tmp_path / "out"))
    again, _ = partitions_of(whole)
    assert again[0].path.read_text() == first[2].path.read_text()


def test_media_that_are_large_make_a_portion_by_themselves() -> None:
    file = MediaFile(path=Path("/a"), media_path="a", source="a", kind="video")
    sizes = [5, 1, 9, 30, 2, 2]
    parts = cut([(file, size) for size in sizes], max_files=4, limit=10)
    assert [[size for _, size in part] for part in parts] == [[5, 1], [9], [30], [2, 2]]


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
    found = verdicts(
        runs,
        now=SWEPT_AT,
        older_than=timedelta(seconds=60),
    )
    return {verdict.run.name: verdict.why_not for verdict in found}


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


def test_a_run_that_dies_before_it_begins_is_started_again_three_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    for name, stand_in in (
        ("get_client", lambda **_: Swept()),
        ("close_ended", lambda *_: 0),
        ("drop_late", lambda *_: None),
        ("get_run_logger", lambda: log),
    ):
        monkeypatch.setattr(sweep, name, stand_in)
    for _ in range(5):
        Swept.states.append(Crashed(message="Process exited with status code: 1"))
        end = sweep.sweep_crashed.fn(older_than_seconds=0.0, younger_than_hours=1e6)
    again = [f"a (Crashed) is started again, {time} of 3 times" for time in (1, 2, 3)]
    alone = "a (Crashed) is left alone: it was started again 3 times already; see why it ends"
    assert lines == [*again, alone, alone]
    assert end.message == "0 of 1 crashed runs started again"


@pytest.mark.logs_errors
def test_the_error_of_a_task_has_no_traceback_of_no_exception(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


def test_a_folder_of_another_command_gets_no_portions(tmp_path: Path) -> None:
    from flows.deployments.many import hand_out

    (tmp_path / "a.png").touch()
    out = tmp_path / "out"
    write_marker(out, Marker(command="caption"))
    sources = (str(tmp_path / "a.png"),)
    config = LabelConfig(sources=sources, model="demo", labels="a", out=str(out))
    state = hand_out(config, 50, "label-images")
    assert state.is_failed() and "is the output folder of `penstock caption`" in str(state.message)
    assert not (out / "portions").exists()

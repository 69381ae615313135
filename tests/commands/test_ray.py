"""A run divided among the nodes of a cluster: which tasks are submitted, and what a task checks. A
cluster made of a list of tasks stands for Ray, whose own tests are in test_flows_many_ray.py."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from artifacts.errors import EnvironmentFault, MissingPackage, UsageError
from artifacts.records.store import open_store
from flows.core.console.display import Display
from flows.core.options.commands import CaptionConfig
from flows.core.options.vectors import LabelConfig
from flows.interfaces.prefect import commands
from flows.interfaces.ray import partition
from flows.interfaces.ray import run as many_run
from flows.interfaces.ray.partition import Terms, check_node, process, terms_of, withdraw
from flows.interfaces.ray.run import (
    ATTEMPTS,
    Cluster,
    Dispatch,
    TaskRun,
    gpus_of_a_task,
    run_on_cluster,
)
from flows.outputs.marker import Marker, write_marker

FAULT = {"error": EnvironmentFault("no space left"), "retry": True}
WRONG = {"error": UsageError("no such model"), "retry": False}
DONE = {"error": None}
CLOCK = SimpleNamespace(now=0.0)
"""Seconds; a look at the tasks takes 30."""


@dataclass
class Tasks:
    """Tasks on slots. Each task takes `lasts` looks."""

    slots: int
    lasts: Callable[[str, int], int] = lambda name, attempt: 1
    ends: Callable[[str, int], Mapping[str, Any]] = lambda name, attempt: DONE
    submitted: list[tuple[str, list[str]]] = field(default_factory=list)
    open: dict[int, int] = field(default_factory=dict)
    """Task → turns left."""
    cancelled: list[int] = field(default_factory=list)
    most: int = 0

    @property
    def window(self) -> int:
        return 3 * self.slots

    def submit(self, config: object, terms: Terms, avoid: Collection[str] = ()) -> int:
        task = len(self.submitted)
        self.submitted.append((terms.partition, list(avoid)))
        self.open[task] = self.lasts(terms.partition, self.attempt(task))
        self.most = max(self.most, len(self.open))
        return task

    def attempt(self, task: int) -> int:
        return [name for name, _ in self.submitted[: task + 1]].count(self.submitted[task][0])

    def ended(self, tasks: Sequence[int], _: float) -> Iterator[tuple[int, Mapping[str, Any]]]:
        CLOCK.now += 30
        for task in [each for each in self.open if each in tasks][: self.slots]:
            if task not in self.open:  # stopped meanwhile
                continue
            self.open[task] -= 1
            if self.open[task] <= 0:
                del self.open[task]
                end = self.ends(self.submitted[task][0], self.attempt(task))
                yield task, {"node_id": f"node{task % 2}", **end}

    def cancel(self, task: int) -> None:
        self.cancelled.append(task)
        self.open.pop(task, None)


@pytest.fixture(autouse=True)
def a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        CLOCK.now += seconds

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: CLOCK.now)
    monkeypatch.setattr(many_run, "time", clock)


def terms(count: int) -> list[Terms]:
    plain = Terms(command="caption", out=Path("/out"), folder="/", token="t")
    return [replace(plain, partition=f"p{n}") for n in range(count)]


def ended(tasks: Tasks, of: list[Terms]) -> list[TaskRun]:
    told: list[TaskRun] = []
    config = CaptionConfig(sources=(), model="demo")
    runs = Dispatch(cast(Cluster, tasks), config).all(of, told.append)
    assert sorted(map(id, told)) == sorted(map(id, runs))
    return runs


@pytest.mark.parametrize("slots", [1, 2, 7])
def test_each_partition_is_done_once_and_few_are_submitted_at_a_time(slots: int) -> None:
    tasks = Tasks(slots)
    assert all(run.result and run.error is None for run in ended(tasks, terms(40)))
    assert [name for name, _ in tasks.submitted] == [f"p{n}" for n in range(40)]
    assert tasks.most <= 3 * slots


def test_a_fault_of_a_node_is_tried_again_on_others() -> None:
    tasks = Tasks(2, ends=lambda name, n: FAULT if name == "p0" and n < 3 else DONE)
    runs = ended(tasks, terms(5))
    assert all(run.error is None for run in runs) and runs[0].attempts == 3
    avoided = [avoid for name, avoid in tasks.submitted if name == "p0"]
    assert avoided[0] == [] and len(avoided[1]) == 1 and set(avoided[1]) <= set(avoided[2])


def test_one_failure_in_ten_is_borne_and_one_more_ends_the_run() -> None:
    few = ended(Tasks(2, ends=lambda name, _: FAULT if name == "p3" else DONE), terms(10))
    assert [run.attempts for run in few if run.error] == [ATTEMPTS]
    tasks = Tasks(2, ends=lambda name, _: WRONG if name in ("p0", "p1") else DONE)
    with pytest.raises(UsageError, match="no such model"):
        ended(tasks, terms(19))
    assert len(tasks.submitted) < 19 and not tasks.open


def test_a_straggler_gets_a_second_task_which_is_stopped_when_one_has_done_it() -> None:
    tasks = Tasks(4, lasts=lambda name, n: 50 if (name, n) == ("p1", 1) else 1)
    runs = ended(tasks, terms(3))
    assert [name for name, _ in tasks.submitted].count("p1") == 2
    assert runs[1].helped and tasks.cancelled == [1] and not tasks.open
    whole = [replace(terms(1)[0], partition="")]
    alone = Tasks(4, lasts=lambda *_: 50)
    ended(alone, whole)
    assert len(alone.submitted) == 1  # two would write the same outputs


def test_the_copy_of_a_straggler_may_fail() -> None:
    ends = {2: WRONG}
    tasks = Tasks(4, lambda _, n: 50 if n == 1 else 2, ends=lambda _, n: ends.get(n, DONE))
    assert [run.error for run in ended(tasks, terms(2))] == [None, None]


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    (tmp_path / "a.mp4").touch()
    where = {"out": str(tmp_path / "out"), "store": str(tmp_path / "store")}
    return CaptionConfig(sources=(str(tmp_path / "a.mp4"),), model="demo", **where)  # type: ignore[arg-type]


def test_a_node_without_the_store_or_the_output_folder_is_refused_by_name(
    config: CaptionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "TOKEN_SECONDS", 0.0)
    terms = terms_of("caption", config)
    check_node(config, terms)
    other = tmp_path / "other"
    with pytest.raises(UsageError, match=f"the store {other} on .* is not shared"):
        check_node(replace(config, store=str(other)), terms)
    with pytest.raises(UsageError, match=f"the output folder {other} on .* is not shared"):
        check_node(config, replace(terms, out=other))
    end = process(replace(config, store=str(other)), terms)
    assert isinstance(end["error"], UsageError) and not end["retry"]
    withdraw(config, terms)
    assert list(open_store(config.store).list("shared")) == []
    assert [p.name for p in (tmp_path / "out" / "portions").iterdir()] == []


def test_other_versions_are_refused_by_name(config: CaptionConfig) -> None:
    terms = terms_of("caption", config)
    torch = terms.versions["torch"]
    changed = replace(terms, versions={**terms.versions, "torch": "9.9"})
    with pytest.raises(UsageError, match=f"torch is {torch} on .*, and 9.9 where the run"):
        check_node(config, changed)


def test_only_variables_of_stores_and_of_the_hub_cross_and_none_is_shown(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "login")
    terms = terms_of("caption", config)
    assert terms.environment["AWS_SECRET_ACCESS_KEY"] == "very-secret"
    assert "PREFECT_API_AUTH_STRING" not in terms.environment
    assert "very-secret" not in repr(terms)


def test_without_ray_the_extra_is_named(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackage, match=r"pip install 'penstock\[ray\]'"):
        run_on_cluster("caption", config, Display(quiet=True), "auto")


@pytest.mark.parametrize("address", ["cluster", "host:port", "ray.example.org"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=f"'{address}' is no address"):
        many_run._check_reachable(address)


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with pytest.raises(EnvironmentFault, match=r"nothing answers at 127\.0\.0\.1:1 "):
        many_run._check_reachable("127.0.0.1:1")


def test_a_folder_of_another_command_gets_no_partitions(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    out = tmp_path / "out"
    write_marker(out, Marker(command="caption"))
    sources = (str(tmp_path / "a.png"),)
    config = LabelConfig(sources=sources, model="demo", labels="a", out=str(out))
    with pytest.raises(UsageError, match="is the output folder of `penstock caption`"):
        run_on_cluster("label", config, Display(quiet=True), "auto")
    assert not (out / "portions").exists()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What flows run, whose environment names no cluster."""
    found: list[Any] = []
    monkeypatch.setattr(commands, "run_in_flow", lambda config, run, makes: found.append(run))
    monkeypatch.delenv(commands.ADDRESS, raising=False)
    return found


def test_a_flow_uses_the_cluster_that_the_environment_names(
    config: CaptionConfig, ran: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.caption_many.fn(config)
    monkeypatch.setenv(commands.ADDRESS, "head:6379")
    commands.caption_many.fn(config)
    plain, on_cluster = ran
    assert plain.func is commands.caption_and_remember and on_cluster.__name__ == "on_cluster"


@pytest.mark.parametrize(
    ("model", "gpus"),
    [({}, "all"), ({"model": "openai:m", "endpoint": ("http://127.0.0.1:1",)}, None)],
)
def test_a_flow_without_a_cluster_uses_the_gpus_that_the_model_can_use(
    model: dict[str, Any], gpus: str | None, ran: list[Any]
) -> None:
    commands.caption_many.fn(CaptionConfig(sources=("a",), **model))
    assert [run.args[0].gpus for run in ran] == [gpus]


def test_gpus_says_how_many_a_task_takes() -> None:
    configs = {given: CaptionConfig(sources=("a",), gpus=given) for given in (None, "all", "2")}
    taken = {given: gpus_of_a_task(config) for given, config in configs.items()}
    assert taken == {None: None, "all": None, "2": 2}
    with pytest.raises(UsageError, match="Ray selects"):
        gpus_of_a_task(CaptionConfig(sources=("a",), gpus="0,1"))

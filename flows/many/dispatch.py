"""Submits the tasks of a run to a cluster, and waits until all have ended.

All lasting state lies in the store. A partition may therefore be processed any number of times, and
by two tasks at once, which claim its batches one by one.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from artifacts.errors import PenstockError
from flows.many.cluster import Cluster
from flows.many.partition import Terms
from flows.options.commands import RunOptions

ATTEMPTS = 5
"""Attempts for a task that the environment of its node fails."""
PAUSE_SECONDS = 2.0
"""Pause before the second attempt; each further one doubles it."""
POLL_SECONDS = 2.0
HELP_SECONDS = 60.0
"""Time for which slots are idle until the partitions that still run get a second task."""
FAILING_SHARE = 0.1
"""Share of failed tasks beyond which the run ends."""


@dataclass(kw_only=True, slots=True, eq=False)
class TaskRun:
    """A partition, or the outputs of all, and the tasks that were submitted for it."""

    terms: Terms
    tasks: list[Any] = field(default_factory=list)
    """Tasks that have not ended."""
    attempts: int = 0
    due: float = 0.0
    """Monotonic time before which it is not submitted again."""
    failing: set[str] = field(default_factory=set)
    """Ids of the nodes whose environment failed it."""
    helped: bool = False
    result: Mapping[str, Any] = field(default_factory=dict)
    """What the first task returned that succeeded."""
    error: PenstockError | None = None
    """Why it failed for good."""


class Dispatch:
    """The tasks of a run on a cluster."""

    def __init__(self, cluster: Cluster, config: RunOptions) -> None:
        self._cluster, self._config = cluster, config
        self._owner: dict[Any, TaskRun] = {}
        self._busy_at = time.monotonic()
        """Last time when no slot was idle."""

    def all(self, terms: Sequence[Terms], on_end: Callable[[TaskRun], None]) -> list[TaskRun]:
        """Run a task for each of `terms`, in this order, and return how they ended. `on_end` is
        called for each. Raises the error of one if too many fail."""
        runs = [TaskRun(terms=each) for each in terms]
        waiting, failed = list(runs), 0
        try:
            while waiting or self._owner:
                self._submit_due(waiting)
                self._help(waiting)
                for run in self._ended():
                    if not run.result and run.error is None:
                        waiting.append(run)
                        continue
                    on_end(run)
                    failed += run.error is not None
                    if run.error is not None and failed > FAILING_SHARE * len(runs):
                        raise run.error
        finally:
            for task in self._owner:
                self._cluster.cancel(task)
            self._owner.clear()
        return runs

    def _submit_due(self, waiting: list[TaskRun]) -> None:
        room = max(0, self._cluster.window - len(self._owner))
        for run in [each for each in waiting if each.due <= time.monotonic()][:room]:
            waiting.remove(run)
            run.attempts += 1
            self._submit(run)

    def _submit(self, run: TaskRun) -> None:
        task = self._cluster.submit(self._config, run.terms, sorted(run.failing))
        run.tasks.append(task)
        self._owner[task] = run

    def _help(self, waiting: Sequence[TaskRun]) -> None:
        """Submit the last partitions once more when slots have been idle for long."""
        if waiting or len(self._owner) >= self._cluster.slots:
            self._busy_at = time.monotonic()
        if time.monotonic() - self._busy_at < HELP_SECONDS:
            return
        for run in list(self._owner.values()):
            if run.terms.partition and not run.helped and len(self._owner) < self._cluster.slots:
                run.helped = True
                self._submit(run)

    def _ended(self) -> Iterator[TaskRun]:
        """Wait for tasks. Yield what has ended with them, and what is to be submitted again."""
        if not self._owner:
            return time.sleep(PAUSE_SECONDS)
        for task, result in self._cluster.ended(list(self._owner), POLL_SECONDS):
            run = self._owner.pop(task, None)
            if run is None:  # its other task was faster, and this one was stopped
                continue
            run.tasks.remove(task)
            if result["error"] is None:
                run.result = result
                for other in run.tasks:
                    self._cluster.cancel(other)
                    del self._owner[other]
            elif run.tasks:
                continue  # the other one may still succeed
            elif result["retry"] and run.attempts < ATTEMPTS:
                run.failing.add(result["node_id"])
                run.due = time.monotonic() + PAUSE_SECONDS * 2 ** (run.attempts - 1)
            else:
                run.error = result["error"]
            yield run

"""Retries items that did not fit in a batch, alone and on every lower rung, before they fail."""

from collections.abc import Callable, Sequence
from typing import Any

from artifacts.errors import CannotFit
from flows.job.prepare import Job
from flows.ledger.tasks import Task, unique
from flows.planning.ladder import Ladder
from flows.planning.rungs import Rung
from flows.results.outputs import media_paths_of
from flows.running.stage_calls import settings_on
from stages.process.events import TooLarge
from stages.process.stage import StageSpec

RunAlone = Callable[[StageSpec, Sequence[Task], Rung], bool]
"""Runs one process of a stage on a rung over tasks, each in a batch of its own, and returns whether
it fitted in memory."""


def too_large(stage: str, message: str, requested_bytes: int = 0) -> dict[str, Any]:
    """Return the failure record of an item that does not fit in memory."""
    more = ""
    if requested_bytes:
        more = f": {requested_bytes / (1 << 20):,.0f} MiB more were requested at once"
    return {
        "stage": stage,
        "kind": "memory",
        "message": f"the {stage} stage has too little memory for this item, even alone"
        f"{more} ({message})",
        "hint": "Raise --memory or lower --max-frames; the same command tries it again",
    }


class SingleItemFallback:
    """Retries the items of one run that did not fit."""

    def __init__(self, job: Job, ladder: Ladder, run: RunAlone) -> None:
        """Keep the job and the function that runs it."""
        self._job = job
        self._ladder = ladder
        self._run = run

    def retry(self, stage: StageSpec, tasks: Sequence[Task], events: Sequence[TooLarge]) -> None:
        """Run each item that was reported as too large in its own process, on lower and lower
        rungs. Raises CannotFit if the stage never made any record."""
        events_by_identity = self._events_by_identity(stage, tasks, events)
        remaining = [task for task in tasks if task.identity in events_by_identity]
        for rung in self._ladder.single_item_rungs(stage.name) if remaining else []:
            error = events_by_identity[remaining[0].identity].error
            self._ladder.log_single_items(rung, [self._name(task) for task in remaining], error)
            self._run_each(stage, rung, remaining)
            remaining = [task for task in remaining if not self._is_made(stage, task)]
            if not remaining:
                break
        self._job.ledger.clear_tasks()
        of_job = self._job.ledger.tasks(self._job.media) if remaining else []
        if remaining and not any(self._is_made(stage, task) for task in of_job):
            error = events_by_identity[remaining[0].identity].error
            raise self._ladder.nothing_fits(stage.name, CannotFit(error))
        for task in remaining:
            event = events_by_identity[task.identity]
            self._job.ledger.unfit[task.identity] = too_large(
                stage.name, event.error, event.wanted_bytes
            )

    def _events_by_identity(
        self, stage: StageSpec, tasks: Sequence[Task], events: Sequence[TooLarge]
    ) -> dict[tuple[str, int, str], TooLarge]:
        """Return the event of each task. An event may name the task's key in any equivalent
        variant."""
        by_key, ledger = {event.key: event for event in events}, self._job.ledger
        found = {}
        for task in tasks if by_key else ():
            keys = [each[stage.writes] for each in ledger.equivalent_tasks(task)]
            reported = [by_key[key] for key in keys if key in by_key]
            if reported:
                found[task.identity] = reported[0]
        return found

    def _run_each(self, stage: StageSpec, rung: Rung, tasks: Sequence[Task]) -> None:
        """Run all tasks in one process. If it runs out of memory, run each task in its own."""
        one_each = unique([self._on_rung(stage, rung, task) for task in tasks], stage.writes)
        if not self._run(stage, one_each, rung) and len(one_each) > 1:
            for task in one_each:
                self._run(stage, [task], rung)

    def _on_rung(self, stage: StageSpec, rung: Rung, task: Task) -> Task:
        """Return the task with the cache keys that it has on a rung."""
        ledger, settings = self._job.ledger, settings_on(self._job.model, rung)
        if stage.part is None or settings is None:
            return task
        precision = {**task.namespaces.precision, stage.part: settings.label}
        return ledger.in_variant(task, ledger.variant(precision))

    def _is_made(self, stage: StageSpec, task: Task) -> bool:
        ledger = self._job.ledger
        tasks = (ledger.in_variant(task, variant) for variant in ledger.variants)
        return any(task[stage.writes] in ledger[stage.writes] for task in tasks)

    def _name(self, task: Task) -> str:
        name = media_paths_of(self._job)[task.medium.digest]
        return f"{name} at {task.chunk.start:.1f} s" if task.chunk.start else name

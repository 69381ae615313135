"""Tries items that did not fit next to others alone, on every lower rung, before they fail."""

from collections.abc import Callable, Sequence
from typing import Any

from artifacts.errors import CannotFit
from flows.job.prepare import Job
from flows.ledger.tasks import Task, unique
from flows.planning.ladder import Ladder
from flows.planning.rungs import Rung
from flows.results.outputs import names_of
from flows.running.calls import settings_on
from stages.process.events import TooLarge
from stages.process.outcome import StageOutcome
from stages.process.stage import StageSpec

Run = Callable[[StageSpec, list[list[Task]], Rung], tuple[StageOutcome, CannotFit | None]]
"""A function that runs one process of a stage over batches, on a rung."""


def too_large(stage: str, words: str, wanted: int = 0) -> dict[str, Any]:
    """Return the record of the failure of an item that does not fit."""
    more = f", and {wanted / (1 << 20):,.0f} MiB more were asked for at once" if wanted else ""
    return {
        "stage": stage,
        "kind": "memory",
        "message": f"the {stage} stage has not the memory for it, even alone{more} ({words})",
        "hint": "Give --memory more, or fewer --max-frames; the same command tries it again",
    }


class SingleItemFallback:
    """The fallback for items of one run that did not fit."""

    def __init__(
        self, job: Job, ladder: Ladder, run: Run, tell: Callable[[str, int, int], None]
    ) -> None:
        """Keep the job and what runs it; `tell` is as in Steps."""
        self._job = job
        self._tell = tell
        self._ladder = ladder
        self._run = run

    def fit(self, stage: StageSpec, tasks: Sequence[Task], told: Sequence[TooLarge]) -> None:
        """Make what was told to be too large in processes of its own, on lower and lower rungs.
        Raises CannotFit when the stage never made anything at all."""
        large = self._by_place(stage, tasks, told)
        left = [task for task in tasks if task.place in large]
        for rung in self._ladder.single_item_rungs(stage.name) if left else []:
            error = large[left[0].place].error
            self._ladder.tell_single_items(rung, [self._name(task) for task in left], error)
            self._try(stage, rung, left)
            left = [task for task in left if not self._made(stage, task)]
            if not left:
                break
        self._job.ledger.clear_tasks()
        if left and not self._ever(stage):
            error = large[left[0].place].error
            raise self._ladder.nothing_fits(stage.name, CannotFit(error))
        for task in left:
            event = large[task.place]
            self._job.ledger.unfit[task.place] = too_large(
                stage.name, event.error, event.wanted_bytes
            )

    def _by_place(
        self, stage: StageSpec, tasks: Sequence[Task], told: Sequence[TooLarge]
    ) -> dict[tuple[str, int, str], TooLarge]:
        """Return what was told of each task, under its key of any variant that answers as well."""
        large, ledger = {event.key: event for event in told}, self._job.ledger
        found = {}
        for task in tasks if large else ():
            keys = [each[stage.writes] for each in ledger.answers(task)]
            events = [large[key] for key in keys if key in large]
            if events:
                found[task.place] = events[0]
        return found

    def _try(self, stage: StageSpec, rung: Rung, tasks: Sequence[Task]) -> None:
        """Run all of them in one process, and each in its own when that dies."""
        one_each = unique([self._on(stage, rung, task) for task in tasks], stage.writes)
        self._tell(stage.name, len(one_each), 0)
        _, error = self._run(stage, [[task] for task in one_each], rung)
        if error is not None and len(one_each) > 1:
            for task in one_each:
                self._tell(stage.name, 1, 0)
                self._run(stage, [[task]], rung)

    def _on(self, stage: StageSpec, rung: Rung, task: Task) -> Task:
        """Return the task with the keys of what it becomes on a rung."""
        ledger, settings = self._job.ledger, settings_on(self._job.model, rung)
        if stage.part is None or settings is None:
            return task
        wanted = {**task.namespaces.precision, stage.part: settings.label}
        return ledger.again(task, ledger.variant(wanted))

    def _made(self, stage: StageSpec, task: Task) -> bool:
        ledger = self._job.ledger
        tasks = (ledger.again(task, variant) for variant in ledger.variants)
        return any(task[stage.writes] in ledger[stage.writes] for task in tasks)

    def _ever(self, stage: StageSpec) -> bool:
        """Return whether the stage made anything of this job, now or before."""
        return any(self._made(stage, task) for task in self._job.ledger.tasks(self._job.media))

    def _name(self, task: Task) -> str:
        name = names_of(self._job)[task.medium.digest]
        return f"{name} at {task.chunk.start:.1f} s" if task.chunk.start else name

"""Finds captions that were stored while a model was run as stock, where a rule now runs it as
published; starts nothing."""

from typing import TYPE_CHECKING

from artifacts.packs import stored_namespaces
from artifacts.words import counted

if TYPE_CHECKING:
    from flows.job.prepare import Job
    from flows.job.tasks import Task


def may_reuse_stock(job: "Job") -> bool:
    """Return whether a model is run as published by rule, on a store that has captions of any."""
    last = job.pipeline[-1]
    by_rule = job.model.profile.as_published and job.config.as_published is None
    return by_rule and last.limited and bool(stored_namespaces(job.store, last.writes))


def stock_note(job: "Job", stock: "Job") -> list[str]:
    """Return a line on the chunks that have a caption as stock and none as published; none where
    there are no such chunks. `stock` is the same job as stock, without its media."""
    made = {task.place for task in job.ledger.tasks(job.media) if _is_made(job, task)}
    there = {task.place for task in stock.ledger.tasks(job.media) if _is_made(stock, task)}
    count = len(there - made)
    return [f"{counted(count, 'caption')} are stored as stock; --as-stock reuses them"] * bool(
        count
    )


def _is_made(job: "Job", task: "Task") -> bool:
    return job.ledger.has(task, job.pipeline[-1])

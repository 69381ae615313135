"""Finds captions that were stored while a model ran with its stock class, for models that a newer
rule runs with their published code. Starts no process.
"""

from collections.abc import Sequence

from artifacts.packs import stored_namespaces
from artifacts.plurals import counted
from artifacts.store import Store
from flows.checkpoint.models import Model
from flows.ledger.ledger import Ledger
from flows.ledger.tasks import Medium
from flows.options.commands import RunOptions
from flows.pipelines import Pipeline


def may_reuse_stock(config: RunOptions, model: Model, store: Store, pipeline: Pipeline) -> bool:
    """Return whether the model runs as published by rule, and the store holds captions."""
    last = pipeline[-1]
    by_rule = model.profile.as_published and config.as_published is None
    return by_rule and last.uses_token_limit and bool(stored_namespaces(store, last.writes))


def stock_note(ledger: Ledger, stock: Ledger, media: Sequence[Medium]) -> list[str]:
    """Return a note on chunks that have a caption as stock but none as published. Return an empty
    list if there are no such chunks."""
    made, there = (_made(each, media) for each in (ledger, stock))
    count = len(there - made)
    note = f"{counted(count, 'caption')} are stored as stock; --as-stock reuses them"
    return [note] if count else []


def _made(ledger: Ledger, media: Sequence[Medium]) -> set[tuple[str, int, str]]:
    """Return the chunks that have a caption."""
    last = ledger.pipeline[-1]
    return {task.identity for task in ledger.tasks(media) if ledger.has(task, last)}

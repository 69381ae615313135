"""Finds in the store which weights a run needs, and fetches them before a stage needs them. Loads
no weights."""

from collections.abc import Collection, Sequence

from artifacts.schema import Part
from flows.checkpoint.models import Model
from flows.console.display import Display
from flows.ledger.ledger import Ledger
from flows.ledger.tasks import Medium
from stages.models.hub.fetching import fetch
from stages.process.stage import StageSpec


def stages_with_work(ledger: Ledger, media: Sequence[Medium]) -> list[StageSpec]:
    """Return the stages after the first that have missing records, as far as the store shows it
    before work starts."""
    later = ledger.pipeline[1:]
    known = [medium for medium in media if ledger.failure(medium) is None]
    if any(ledger.media_index(medium) is None for medium in known):
        return list(later)
    tasks = [task for task in ledger.tasks(known) if not ledger.has_failed(task)]
    return [stage for stage in later if not all(ledger.has(task, stage) for task in tasks)]


def bytes_to_fetch(model: Model, parts: Collection[Part]) -> int:
    """Return the bytes to download for these parts; 0 if all files are local."""
    return sum(file.size for file in model.checkpoint.missing(model.shards(parts)))


def fetch_parts(model: Model, parts: Collection[Part], display: Display) -> None:
    """Download the files of these parts, unless they are local. Raises PenstockError."""
    if not parts:
        return
    whole = model.shards(parts) == model.shards(model.profile.parts)
    fetch(
        model.checkpoint,
        model.shards(parts),
        what="" if whole else f"the {next(iter(parts))} half of ",
        announce=display.print_line,
        progress=display.fetched,
    )

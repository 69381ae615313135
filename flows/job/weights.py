"""Which weights a run needs, read off the store, and fetching them before a stage wants them; loads
none."""

from collections.abc import Collection, Sequence

from artifacts.schema import Half
from flows.console.display import Display
from flows.job.ledger import Ledger
from flows.job.models import Model
from flows.job.tasks import Medium
from stages.models.hub.fetching import fetch


def halves_wanted(ledger: Ledger, media: Sequence[Medium]) -> list[Half]:
    """The halves that have work to do, as far as the store tells before it starts."""
    known = [medium for medium in media if ledger.failure(medium) is None]
    if any(ledger.index(medium) is None for medium in known):
        return ["vision", "language"]
    features = ledger.features.keys()
    open_tasks = [
        task
        for task in ledger.tasks(known)
        if task.caption not in ledger.captions and not ledger.lost(task)
    ]
    wanted: list[Half] = []
    if any(task.features not in features for task in open_tasks):
        wanted.append("vision")
    if open_tasks:
        wanted.append("language")
    return wanted


def bytes_to_fetch(model: Model, halves: Collection[Half]) -> int:
    """Size of what must be downloaded for these halves; 0 when all is here."""
    return sum(file.size for file in model.checkpoint.missing(model.shards(halves)))


def fetch_halves(model: Model, halves: Collection[Half], display: Display) -> None:
    """Bring the files that hold these halves here, unless they are. Raises PenstockError."""
    if not halves:
        return
    whole = model.shards(halves) == model.shards(("vision", "language"))
    fetch(
        model.checkpoint,
        model.shards(halves),
        what="" if whole else f"the {next(iter(halves))} half of ",
        announce=display.say,
        progress=display.fetched,
    )

"""What one process of a stage is to do; runs nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from flows.job.ledger import Ledger
from flows.job.tasks import Medium, Task
from flows.job.waves import lengths_of
from flows.planning.rungs import Rung
from flows.running.batches import batches_by_length, batches_by_shape, cut
from stages.process.stage import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one process of a stage is to do."""

    rung: Rung
    tasks: list[Task]
    """Of the wave, all that are made in the same way, done or not."""
    batches: list[list[Task]]
    total: int
    """Items of the wave."""
    missing: int
    """Those that are not there yet."""
    tokens: int = 0
    """Of the longest prompt, about."""


def work_of(
    ledger: Ledger, stage: Stage, wave: Sequence[Medium], rung: Rung, batch_size: int
) -> Work | None:
    """What of a stage is to be done next: of all that is missing what is made in one way."""
    made, read = stage.writes, ledger[stage.reads]
    tasks = [t for t in ledger.tasks(wave) if not ledger.lost(t)]
    missing = {t[made] for t in tasks if not ledger.has(t, stage)}
    first = next((t for t in tasks if t[made] in missing), None)
    if first is None:
        return None
    together = [t for t in tasks if t.scopes == first.scopes]
    lengths = lengths_of(ledger, together, stage) if stage.prompted else {}
    whole = (
        batches_by_length(together, made, lengths, batch_size)
        if stage.prompted
        else batches_by_shape(together, made, batch_size)
    )
    return Work(
        rung=rung,
        tasks=together,
        batches=[
            # Whole, so that the bytes are those of an undisturbed run; without what an earlier
            # command finished, whose frames are gone.
            [t for t in batch if t[made] in missing or t[stage.reads] in read]
            for batch in cut(whole, rung.batch)
            if any(t[made] in missing for t in batch)
        ],
        total=len({t[made] for t in tasks}),
        missing=len(missing),
        tokens=max(lengths.values(), default=0),
    )

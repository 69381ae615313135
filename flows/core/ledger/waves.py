"""Divides a job into waves that fit the disk, and estimates prompt lengths for batching.

Both are stored the first time they are computed. A resumed run may find other free space or missing
features, and with some engines a chunk's output depends on the batch it is computed in. With the
others, waves are divided anew when the room has become much larger or smaller.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

from artifacts.digests import digest_of
from artifacts.records.packs import Record
from flows.core.checkpoint.models import Model
from flows.core.ledger.ledger import Ledger
from flows.core.ledger.tasks import Medium, Task, task_of, unique
from stages.decode.engines import ENGINES
from stages.process.stage_spec import StageSpec

BYTES_PER_TOKEN = 4
"""Approximate prompt bytes per token. Precise enough to sort prompts by length without a
tokenizer."""
MAX_OTHER_PROMPTS = 8
"""Largest number of other prompts whose captions are looked up."""


MOST_RATIO = 2
"""Recorded waves are used unless today's room makes over so many times more or fewer of them. The
files of a run without a caption change the room by less."""


def waves_of(
    ledger: Ledger,
    media: Sequence[Medium],
    lengths: Sequence[int],
    *,
    as_recorded: bool,
    records: bool = True,
) -> list[list[Medium]]:
    """Divide the media into waves of these `lengths`, or as an earlier run recorded: always with
    `as_recorded`, else if they are about as many. The first division is recorded if `records`."""
    key, waves = digest_of([[m.digest, m.prompt] for m in media]), ledger.records.waves
    if records and key not in waves:
        waves.publish([Record(key=key, meta={"lengths": list(lengths)})])
    recorded: Sequence[int] = waves.meta(key)["lengths"] if key in waves else lengths
    few, many = sorted((len(recorded), len(lengths)))
    rest = iter(media)
    chosen = recorded if as_recorded or many <= MOST_RATIO * few else lengths
    return [list(islice(rest, length)) for length in chosen]


def has_own_bytes(ledger: Ledger, model: Model, media: Iterable[Medium]) -> bool:
    """Return whether a record's bytes depend on its cache key alone, and not on its batch. An
    engine that another replaced is known by the captions that are stored."""
    language = model.settings.get("language", ())
    begun = {task.variant.engine for task in ledger.tasks(media) if ledger.is_done(task)}
    engines = [ENGINES[name] for name in begun if name in ENGINES]
    engines += [engine for settings in language for engine in settings.choice[:1]]
    return not (model.in_batches or any(engine.depends_on_batch for engine in engines))


def cut_waves(sizes: Sequence[int], limit: int) -> list[int]:
    """Return the number of media in each wave: at least one, and at most `limit` bytes."""
    lengths: list[int] = []
    filled = 0
    for size in sizes:
        if not lengths or filled + size > limit:
            lengths.append(0)
            filled = 0
        lengths[-1] += 1
        filled += size
    return lengths


def lengths_of(ledger: Ledger, tasks: Sequence[Task], stage: StageSpec) -> dict[str, int]:
    """Return the approximate number of input tokens of a stage, by the key of its record."""
    wave = unique(tasks, stage.writes)
    key = digest_of(["lengths", *(task[stage.writes] for task in wave)])
    if key not in ledger.records.waves:
        counts = [_length(ledger, task, stage) for task in wave]
        ledger.records.waves.publish([Record(key=key, meta={"tokens": counts})])
    tokens: list[int] = ledger.records.waves.meta(key)["tokens"]
    return {task[stage.writes]: count for task, count in zip(wave, tokens, strict=True)}


def most_tokens(texts: Iterable[str]) -> int:
    """Return about how many tokens the longest of these texts has."""
    return math.ceil(max(len(text.encode()) for text in texts) / BYTES_PER_TOKEN)


def _length(ledger: Ledger, task: Task, stage: StageSpec) -> int:
    kinds = [kind for kind in stage.reads if kind in task.keys and task[kind] in ledger[kind]]
    of_media = sum(int(ledger[kind].meta(task[kind]).get("tokens", 0)) for kind in kinds)
    return of_media + len(task.prompt.encode()) // BYTES_PER_TOKEN


def previous_lengths(ledger: Ledger, tasks: Sequence[Task], stage: StageSpec) -> dict[str, int]:
    """Return the length in tokens of each chunk's caption under another prompt, by the key of the
    new record. A chunk with a long caption tends to get a long one again. The prompts are stored
    for the next run."""
    prompts = {digest_of(["asked", task.medium.prompt]): task.medium.prompt for task in tasks}
    waves = ledger.records.waves
    waves.publish([Record(key=key, meta={"asked": text}) for key, text in prompts.items()])
    metas = (waves.meta(key) for key in sorted(waves.keys() - prompts.keys()))
    others = [meta["asked"] for meta in metas if "asked" in meta][:MAX_OTHER_PROMPTS]
    records, lengths = ledger[stage.writes], {}
    for task in tasks if others else ():
        for prompt in others:
            medium = replace(task.medium, prompt=prompt)
            key = task_of(medium, task.whole, task.variant, task.previous)[stage.writes]
            if key in records:
                lengths[task[stage.writes]] = int(records.meta(key)["tokens"])
                break
    return lengths

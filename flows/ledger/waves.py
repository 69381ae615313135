"""Divides a job into waves that fit the disk, estimates prompt lengths, and fetches needed weights.

The prompt lengths serve batching. Waves and lengths are stored the first time they are computed. A
resumed run may find other free space or missing features, and in 16 bit a chunk's output depends on
the batch it is computed in.

The store shows which weights a run needs. They are fetched before a stage needs them; this module
loads none.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import islice

from artifacts.keys import digest_of
from artifacts.packs import Record
from artifacts.schema import Part
from flows.checkpoint.models import Model
from flows.console.display import Display
from flows.ledger.ledger import Ledger
from flows.ledger.tasks import Medium, Task, unique
from stages.models.hub.transfer import fetch
from stages.process.job import StageSpec

BYTES_PER_TOKEN = 4
"""Approximate prompt bytes per token. Precise enough to sort prompts by length without a
tokenizer."""
MAX_OTHER_PROMPTS = 8
"""Largest number of other prompts whose captions are looked up."""


def waves_of(
    ledger: Ledger, media: Sequence[Medium], sizes: Sequence[int], limit: int
) -> list[list[Medium]]:
    """Divide the media into waves of at most `limit` bytes of frames and features."""
    key = digest_of([[m.digest, m.prompt] for m in media])
    if key not in ledger.wave_records:
        ledger.wave_records.publish([Record(key=key, meta={"lengths": cut_waves(sizes, limit)})])
    left = iter(media)
    return [list(islice(left, length)) for length in ledger.wave_records.meta(key)["lengths"]]


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
    if key not in ledger.wave_records:
        counts = [_length(ledger, task, stage) for task in wave]
        ledger.wave_records.publish([Record(key=key, meta={"tokens": counts})])
    tokens: list[int] = ledger.wave_records.meta(key)["tokens"]
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
    ledger.wave_records.publish([Record(key=key, meta={"asked": p}) for key, p in prompts.items()])
    known = (
        ledger.wave_records.meta(key) for key in sorted(ledger.wave_records.keys() - prompts.keys())
    )
    others = [meta["asked"] for meta in known if "asked" in meta][:MAX_OTHER_PROMPTS]
    made, found = ledger[stage.writes], {}
    for task in tasks if others else ():
        for prompt in others:
            medium = replace(task.medium, prompt=prompt)
            key = ledger.make_task(medium, task.whole, task.namespaces, task.previous)[stage.writes]
            if key in made:
                found[task[stage.writes]] = int(made.meta(key)["tokens"])
                break
    return found


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

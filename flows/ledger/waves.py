"""Divides the work of a job into waves that fit the disk, and estimates prompt lengths for
batching.

Both are stored the first time they are computed. A resumed run may find other free space or missing
features, and in 16 bit a chunk's output depends on the batch it is computed in.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from artifacts.keys import digest_of
from artifacts.packs import Record
from artifacts.schema import WHOLE
from flows.ledger.ledger import Ledger
from flows.ledger.tasks import Medium, Task, unique
from stages.process.stage import StageSpec

BYTES_A_TOKEN = 4
"""Bytes of a prompt a token, about: enough to tell a long one from a short one without a
tokenizer."""
ASKED = 8
"""Most other prompts whose captions are looked at."""


def waves_of(
    ledger: Ledger, media: Sequence[Medium], sizes: Sequence[int], limit: int
) -> list[list[Medium]]:
    """Cut the media into waves of at most `limit` bytes of frames and features."""
    # Cut anew where pictures may have been counted smaller than they are stored since.
    words = [WHOLE] if any(m.kind == "image" for m in media) else []
    key = digest_of([*([m.digest, m.prompt] for m in media), *words])
    if key not in ledger.cuts:
        ledger.cuts.publish([Record(key=key, meta={"lengths": cut_waves(sizes, limit)})])
    left = iter(media)
    return [list(islice(left, length)) for length in ledger.cuts.meta(key)["lengths"]]


def cut_waves(sizes: Sequence[int], limit: int) -> list[int]:
    """Return how many media go into each wave, at least one, so that it stays below `limit`
    bytes."""
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
    """Return about how many tokens a stage is given, by the key of what it makes."""
    wave = unique(tasks, stage.writes)
    key = digest_of(["lengths", *(task[stage.writes] for task in wave)])
    if key not in ledger.cuts:
        counts = [_length(ledger, task, stage) for task in wave]
        ledger.cuts.publish([Record(key=key, meta={"tokens": counts})])
    tokens: list[int] = ledger.cuts.meta(key)["tokens"]
    return {task[stage.writes]: count for task, count in zip(wave, tokens, strict=True)}


def _length(ledger: Ledger, task: Task, stage: StageSpec) -> int:
    read, key = ledger[stage.reads], task[stage.reads]
    of_media = int(read.meta(key).get("tokens", 0)) if key in read else 0
    return of_media + len(task.prompt.encode()) // BYTES_A_TOKEN


def said_before(ledger: Ledger, tasks: Sequence[Task], stage: StageSpec) -> dict[str, int]:
    """Return how many tokens were said of a chunk when it was asked something else, by the key of
    what is made now: who was talkative once is so again. Prompts are kept for the next time."""
    prompts = {digest_of(["asked", task.medium.prompt]): task.medium.prompt for task in tasks}
    ledger.cuts.publish([Record(key=key, meta={"asked": p}) for key, p in prompts.items()])
    known = (ledger.cuts.meta(key) for key in sorted(ledger.cuts.keys() - prompts.keys()))
    others = [meta["asked"] for meta in known if "asked" in meta][:ASKED]
    made, found = ledger[stage.writes], {}
    for task in tasks if others else ():
        for prompt in others:
            medium = replace(task.medium, prompt=prompt)
            key = ledger.at(medium, task.whole, task.namespaces, task.previous)[stage.writes]
            if key in made:
                found[task[stage.writes]] = int(made.meta(key)["tokens"])
                break
    return found

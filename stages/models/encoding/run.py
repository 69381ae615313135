"""Takes frame chunks through the vision half, in one process for a whole wave. It knows neither
prompts nor the language half, nor what is stored of what the half makes.

A batch is always computed whole, because the bytes of a row depend on its batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from artifacts.claims import turns_at
from artifacts.packs import Record, RecordSet
from artifacts.store import open_store
from stages.memory.shrinking import Shrinking, blocks
from stages.models.encoding.batch import encode_batches, overflowed, undivided
from stages.models.encoding.chunks import Refusal
from stages.models.encoding.job import EncodingJob
from stages.models.halves.pieces import Held
from stages.models.halves.records import FeatureRecord
from stages.models.loading import ModelJob, facts
from stages.models.prefetch import PREFETCH_BATCHES, prefetched, write_behind
from stages.models.processors.side_inputs import Prepared
from stages.process.report import Report

Member = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """What a stage makes of the vision half, and how."""

    kind: str
    """The kind of its records."""
    read: Callable[[RecordSet, Any, Member], Prepared | Refusal]
    """Frames, processor and chunk → the chunk as the encoder takes it, or why it does not."""
    record: Callable[[str, FeatureRecord], Record]
    """Key and what the half made of a chunk → what is stored."""
    parts: Callable[[Mapping[str, Any]], int] = lambda meta: 1
    """Description of the stored frames of a picture → how many parts of it are looked at."""
    encode: Callable[[Any, Sequence[Sequence[Prepared]]], list[list[FeatureRecord]]] = (
        encode_batches
    )
    """Half and batches → what it makes of each chunk."""


ToEncode = tuple[dict[str, Any], Prepared | Refusal]
Encoded = tuple[dict[str, Any], FeatureRecord | Refusal]
"""A chunk, as the job has it, with what is known of it by then."""


def encode_all(job: EncodingJob, source: ModelJob, making: Making, report: Report) -> None:
    """Publish a record for each chunk of `batches` that has none, or why it cannot have one."""
    store = open_store(job.store)
    frames = RecordSet(store, "frames", job.frames_namespace)
    records = RecordSet(store, making.kind, job.namespace)
    failures = RecordSet(store, "failures", job.namespace)
    batches = [batch for batch in job.batches if any(m["key"] not in records for m in batch)]
    report.total(sum(member["key"] not in records for batch in batches for member in batch))
    if not batches:
        return
    processor = source.processor()
    half = None if source.route == "joint" else source.hold("vision")
    report.note(ready=True, **({} if half is None else facts(half.model)))

    def prepared(members: Sequence[dict[str, Any]]) -> Prepared | Refusal:
        return making.read(frames, processor, members[0])

    reading = Shrinking(report, lambda: prepared(batches[-1][-1:]))

    def read(some: Sequence[Sequence[dict[str, Any]]]) -> list[list[ToEncode]]:
        """Read the chunks, without those for which alone there is not the memory. A picture may be
        of any size."""
        found = [
            [(m, row) for m in batch for _, row in reading.through([m], _name, prepared)]
            for batch in some
        ]
        return [batch for batch in found if batch]

    def lacking(some: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
        keys = [member["key"] for batch in some for member in batch]
        return [key for key in keys if key not in records and key not in failures]

    def publish(made: list[list[Encoded]]) -> None:
        rows = {member["key"]: (member, row) for batch in made for member, row in batch}
        refused = {k: row.meta() for k, (_, row) in rows.items() if isinstance(row, Refusal)}
        failures.publish([Record(key=key, meta=why) for key, why in refused.items()])
        for key, why in refused.items():
            report.failure(media=key, **why)
        made_of = {k: row for k, (_, row) in rows.items() if isinstance(row, FeatureRecord)}
        for key in records.publish([making.record(k, row) for k, row in made_of.items()]):
            report.item(key)
        turns.done(rows)

    def pictures(member: dict[str, Any]) -> int:
        if member["frames"] not in frames:
            return 1
        meta = frames.meta(member["frames"])
        return making.parts(meta) if member["kind"] == "image" else len(meta["times"])

    compute = partial(_encoded, half, making)

    def last() -> object:
        return compute([[(m, prepared([m])) for m in batches[-1][-1:]]])

    shrinking, block = Shrinking(report, last), job.block
    depth = 1 if block else PREFETCH_BATCHES
    with turns_at(store, records, failures) as turns, write_behind(publish) as later:
        mine = turns.mine(blocks(batches, block, pictures), lacking)
        for _, members in prefetched(mine, read, depth):
            if members:
                for _, made in shrinking.through_together(members, block, _key, compute):
                    later(made)


def _key(pair: ToEncode) -> str:
    return _name(pair[0])


def _name(member: dict[str, Any]) -> str:
    return str(member["key"])


def _encoded(
    half: Held | None, making: Making, batches: Sequence[Sequence[ToEncode]]
) -> list[list[Encoded]]:
    """Make a record for each chunk that was not refused. Of a model that cannot be cut, it is of
    the pixels."""
    rows = [[row for _, row in batch if isinstance(row, Prepared)] for batch in batches]
    if half is None:
        made = [[undivided(row) for row in some] for some in rows]
    else:
        made = half.use(lambda model: making.encode(model, rows))
    found = iter([record for some in made for record in some])
    return [
        [(m, row if isinstance(row, Refusal) else _in_range(next(found))) for m, row in batch]
        for batch in batches
    ]


def _in_range(row: FeatureRecord) -> FeatureRecord | Refusal:
    """Return the features, or that they are too large for what they were computed in."""
    if not overflowed(row):
        return row
    return Refusal(
        message="the model sees numbers that float16 does not hold",
        hint="Give --vision-precision fp32, or bf16 where the GPU computes in it",
        kind="overflow",
    )

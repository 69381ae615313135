"""The encode stage: frame chunks to feature records, in one process for a whole wave. It knows
neither prompts nor the language half.

A batch is always computed whole, because the bytes of a row depend on its batch.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from artifacts.claims import turns_at
from artifacts.pack_object import DamagedRecord
from artifacts.packs import Record, RecordSet
from artifacts.store import open_store
from artifacts.tensors import pack_tree
from stages.encode.batch import encode_batches, overflowed, undivided
from stages.encode.job import EncodeJob
from stages.memory.shrinking import Shrinking, blocks
from stages.models.halves.pieces import Held
from stages.models.halves.records import FeatureRecord
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm
from stages.models.prefetch import PREFETCH_BATCHES, prefetched, write_behind
from stages.models.processors.prepare import Clip, Prepared, prepare
from stages.process.exit_diagnosis import out_of_memory
from stages.process.job import job_of
from stages.process.report import Report

REFUSALS = (ValueError, TypeError, KeyError, IndexError, AssertionError, RuntimeError)
"""Errors that processors raise at frames they cannot take; anything else concerns the whole
stage."""
SHORTEST = 0.04
"""Seconds that a chunk is taken to last at least, when its frames are shown more than once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """The reason why one chunk cannot be encoded, while the others can."""

    message: str
    hint: str = (
        "Try another model or other sampling (--fps, --frames); the other files are captioned"
    )
    kind: str = "refused"

    def meta(self) -> dict[str, str]:
        return {"kind": self.kind, "message": self.message, "hint": self.hint}


ToEncode = tuple[dict[str, Any], Prepared | Refusal]
Encoded = tuple[dict[str, Any], FeatureRecord | Refusal]
"""A chunk, as the job has it, with what is known of it by then."""


def run(told: dict[str, Any], report: Report) -> None:
    """Publish a feature record for each chunk of `batches` that has none, or why it cannot have
    one."""
    job = job_of(EncodeJob, told)
    store = open_store(job.store)
    frames = RecordSet(store, "frames", job.frames_namespace)
    features = RecordSet(store, "features", job.namespace)
    failures = RecordSet(store, "failures", job.namespace)
    batches = [batch for batch in job.batches if any(m["key"] not in features for m in batch)]
    report.total(sum(member["key"] not in features for batch in batches for member in batch))
    if not batches:
        return
    source = ModelJob.of(told)
    processor = source.processor()
    half = None if source.route == "joint" else source.hold("vision")
    report.note(ready=True, **({} if half is None else facts(half.model)))

    def prepared(members: Sequence[dict[str, Any]]) -> Prepared | Refusal:
        return read_member(frames, processor, members[0], job.frames_a_video)

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
        return [key for key in keys if key not in features and key not in failures]

    def publish(made: list[list[Encoded]]) -> None:
        rows = {member["key"]: (member, row) for batch in made for member, row in batch}
        refused = {k: row.meta() for k, (_, row) in rows.items() if isinstance(row, Refusal)}
        failures.publish([Record(key=key, meta=why) for key, why in refused.items()])
        for key, why in refused.items():
            report.failure(media=key, **why)
        whole = [_record(k, row) for k, (_, row) in rows.items() if isinstance(row, FeatureRecord)]
        for key in features.publish(whole):
            report.item(key)
        turns.done(rows)

    def pictures(member: dict[str, Any]) -> int:
        return len(frames.meta(member["frames"])["times"]) if member["frames"] in frames else 1

    def last() -> object:
        return _encoded(half, [[(m, prepared([m])) for m in batches[-1][-1:]]])

    shrinking, block = Shrinking(report, last), job.block
    compute, depth = partial(_encoded, half), 1 if block else PREFETCH_BATCHES
    with turns_at(store, features, failures) as turns, write_behind(publish) as later:
        mine = turns.mine(blocks(batches, block, pictures), lacking)
        for _, members in prefetched(mine, read, depth):
            if members:
                for _, made in shrinking.through_together(members, block, _key, compute):
                    later(made)


def _key(pair: ToEncode) -> str:
    return _name(pair[0])


def _name(member: dict[str, Any]) -> str:
    return str(member["key"])


def _encoded(half: Held | None, batches: Sequence[Sequence[ToEncode]]) -> list[list[Encoded]]:
    """Make a record for each chunk that was not refused. Of a model that cannot be cut, it is of
    the pixels."""
    rows = [[row for _, row in batch if isinstance(row, Prepared)] for batch in batches]
    if half is None:
        made = [[undivided(row) for row in some] for some in rows]
    else:
        made = half.use(lambda model: encode_batches(model, rows))
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


def read_member(
    record_set: RecordSet, processor: Any, member: dict[str, Any], count: int = 0
) -> Prepared | Refusal:
    """Read one chunk as the encoder takes it, or why the processor does not take its frames. It has
    `count` frames if that is not 0."""
    clip = None
    try:
        clip = read_clip(record_set, member)
        if count and len(clip.frames) != count:
            clip = shown(clip, count)
        return prepare(processor, clip, member.get("prompt", ""))
    except REFUSALS as error:
        if out_of_memory(error):
            raise
        if clip is not None and clip.kind == "video" and len(clip.frames) == 1:
            with contextlib.suppress(*REFUSALS):
                return prepare(processor, shown(clip, 2), member.get("prompt", ""))
        text = " ".join(str(error).strip().split("\n")[0].split()) or type(error).__name__
        return Refusal(message=f"the model's processor refuses these frames: {text[:160]}")


def shown(clip: Clip, count: int) -> Clip:
    """Make a clip one of so many frames, for models that take no other number. It has some of its
    frames, evenly, or all and some of them twice or more."""
    taken = [index * len(clip.frames) // count for index in range(count)]
    times = tuple(clip.times[index] for index in taken)
    if count > len(clip.frames):
        first, step = clip.times[0], max(clip.seconds, SHORTEST) / count
        times = tuple(first + index * step for index in range(count))
    return replace(clip, frames=clip.frames[taken], times=times)


def read_clip(record_set: RecordSet, member: dict[str, Any]) -> Clip:
    """Read one chunk's frames with their times counted from its start. Raises DamagedRecord when
    they are gone."""
    try:
        record = record_set.read(member["frames"])
    except KeyError as error:
        raise DamagedRecord(
            f"the frames {member['frames'][:12]}… are no longer in the store",
            hint="Run the same command again: it reads them from the video anew",
        ) from error
    meta = record.meta
    shape = (len(meta["times"]), meta["height"], meta["width"], 3)
    # A copy, because processors make tensors of the frames, and torch wants those to be writable.
    pixels = bytearray(record.payload)
    return Clip(
        frames=np.frombuffer(pixels, np.uint8).reshape(shape),
        # A frame that is on screen when a chunk begins may have come before it.
        times=tuple(max(0.0, float(time) - float(meta["start"])) for time in meta["times"]),
        seconds=float(meta["end"]) - float(meta["start"]),
        kind=member["kind"],
    )


def _record(key: str, row: FeatureRecord) -> Record:
    meta, payload = pack_tree(row.to_tree())
    return Record(key=key, meta={"tree": meta, "tokens": row.count.tokens}, payload=payload)

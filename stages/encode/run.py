"""The encode stage: frame chunks to feature records, in one process for a whole wave; knows neither
prompts nor the language half.

A batch is always computed whole, because the bytes of a row depend on its batch. Inside it, rows
whose encoder inputs have equal shapes go through together.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from artifacts.errors import EnvironmentFault
from artifacts.packs import Record, Shelf
from artifacts.store import open_store
from artifacts.tensors import pack_tree
from stages.models.features import Features, encode
from stages.models.loading import ModelJob
from stages.models.prepare import Clip, Prepared, prepare
from stages.models.records import CannotSplit, FeatureRecord, split
from stages.process.report import Report

AHEAD = 2
"""Batches that are read and prepared on the CPU while one is encoded."""


def run(job: dict[str, Any], report: Report) -> None:
    """Publish a feature record for each chunk of `batches` that has none."""
    store = open_store(job["store"])
    frames = Shelf(store, "frames", job["frames_scope"])
    features = Shelf(store, "features", job["scope"])
    batches = [batch for batch in job["batches"] if any(m["key"] not in features for m in batch)]
    report.total(sum(member["key"] not in features for batch in batches for member in batch))
    if not batches:
        return
    half, processor = ModelJob.of(job).load("vision")
    report.note(attention=half.config._attn_implementation, dtype=str(half.dtype))

    def read(batch: list[dict[str, Any]]) -> list[Prepared]:
        return [prepare(processor, read_clip(frames, member)) for member in batch]

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = [pool.submit(read, batch) for batch in batches[:AHEAD]]
        for index, batch in enumerate(batches):
            prepared = waiting.pop(0).result()
            if index + AHEAD < len(batches):
                waiting.append(pool.submit(read, batches[index + AHEAD]))
            rows = encode_batch(half, prepared)
            records = [_record(m["key"], row) for m, row in zip(batch, rows, strict=True)]
            metas = {member["key"]: frames.meta(member["frames"]) for member in batch}
            for key in features.publish(records):
                report.item(key, seconds_of_media=metas[key]["end"] - metas[key]["start"])


def read_clip(shelf: Shelf, member: dict[str, Any]) -> Clip:
    """One chunk's frames with their times counted from its start. Raises EnvironmentFault when they
    are gone."""
    try:
        record = shelf.read(member["frames"])
    except KeyError as error:
        raise EnvironmentFault(
            f"the frames {member['frames'][:12]}… are no longer in the store",
            hint="Run the same command again: it reads them from the video anew",
        ) from error
    meta = record.meta
    shape = (len(meta["times"]), meta["height"], meta["width"], 3)
    # A copy, because processors make tensors of the frames, and torch wants those to be writable.
    pixels = bytearray(record.payload)
    return Clip(
        frames=np.frombuffer(pixels, np.uint8).reshape(shape),
        times=tuple(float(time) - float(meta["start"]) for time in meta["times"]),
        seconds=float(meta["end"]) - float(meta["start"]),
        kind=member["kind"],
    )


def encode_batch(half: Any, batch: list[Prepared]) -> list[FeatureRecord]:
    """A feature record for each chunk, in order."""
    records: dict[int, FeatureRecord] = {}
    for indexes in _groups(batch):
        rows = [batch[index] for index in indexes]
        made = _encode_together(half, rows)
        if made is None:
            made = [record for row in rows for record in _encode_together(half, [row]) or ()]
        records.update(zip(indexes, made, strict=True))
    return [records[index] for index in range(len(batch))]


def _groups(batch: list[Prepared]) -> Iterator[list[int]]:
    """Indexes of the rows that can be encoded together."""
    found: dict[str, list[int]] = {}
    for index, row in enumerate(batch):
        shapes = {name: _shape(value) for name, value in sorted(row.inputs.items())}
        found.setdefault(repr((row.channel, row.count.media, shapes)), []).append(index)
    yield from found.values()


def _encode_together(half: Any, rows: list[Prepared]) -> list[FeatureRecord] | None:
    """None when the features do not say which row they belong to."""
    inputs = {name: _joined([row.inputs[name] for row in rows]) for name in rows[0].inputs}
    made: Features = encode(half, inputs)
    counts = [row.count for row in rows]
    parts: list[dict[str, Any]] = [{} for _ in rows]
    rules: dict[str, Any] = {}
    try:
        for modality, output in made.items():
            pieces, rules[modality] = split(output, counts)
            for part, piece in zip(parts, pieces, strict=True):
                part[modality] = piece
    except CannotSplit:
        return None
    return [
        FeatureRecord(
            features=part,
            rules=rules,
            needs=tuple(sorted(made.needs)),
            channel=row.channel,
            side=row.side,
            replacements=row.replacements,
            count=row.count,
        )
        for part, row in zip(parts, rows, strict=True)
    ]


def _record(key: str, row: FeatureRecord) -> Record:
    meta, payload = pack_tree(row.to_tree())
    return Record(key=key, meta={"tree": meta, "tokens": row.count.tokens}, payload=payload)


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    return [part for value in values for part in value]


def _shape(value: Any) -> Any:
    return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__

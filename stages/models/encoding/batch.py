"""Turns batches of prepared chunks into feature records with the vision half.

Within a batch, rows whose encoder inputs have equal shapes are computed together. A row's bytes
depend on which rows these are. They do not depend on whether several batches are computed together.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from stages.memory.meta_tensors import tensors
from stages.models.halves.features import Features, encode, is_pixels
from stages.models.halves.inject_features import UNDIVIDED
from stages.models.halves.records import CannotSplit, FeatureRecord, rule_of_input, split
from stages.models.processors.prepare import Prepared, joined
from stages.models.streaming.load import run_calls

Group = tuple[int, list[int]]
"""Index of a batch, and the indexes of its rows in the group."""


def undivided(row: Prepared) -> FeatureRecord:
    """Return what the whole model needs of a chunk: the pixels themselves."""
    pixels = {n: v for n, v in row.inputs.items() if is_pixels(n) and v is not None}
    return FeatureRecord(
        features={UNDIVIDED: pixels},
        rules={UNDIVIDED: {"fields": {n: rule_of_input(v) for n, v in pixels.items()}}},
        needs=tuple(sorted(n for n in row.inputs if n not in pixels)),
        channel=row.channel,
        side=row.side,
        replacements=row.replacements,
        count=row.count,
    )


def encode_batches(half: Any, batches: Sequence[Sequence[Prepared]]) -> list[list[FeatureRecord]]:
    """Return a feature record for each chunk of each batch, in order."""

    def encoded(groups: list[Group]) -> list[tuple[Group, list[FeatureRecord] | None]]:
        rows = [[batches[at][index] for index in indexes] for at, indexes in groups]
        made = run_calls(half, [partial(_encode_together, half, some) for some in rows])
        return list(zip(groups, made, strict=True))

    together = encoded([(at, found) for at, b in enumerate(batches) for found in _groups(b)])
    mixed = [(at, [i]) for (at, found), made in together if made is None for i in found]
    records: list[dict[int, FeatureRecord]] = [{} for _ in batches]
    for (at, indexes), made in [*together, *encoded(mixed)]:
        records[at].update(zip(indexes, made or (), strict=False))
    return [[found[index] for index in range(len(found))] for found in records]


def overflowed(record: FeatureRecord) -> bool:
    """Return whether float16 features contain values that are not finite: some models need a wider
    range."""
    return any(
        not bool(torch.isfinite(value).all())
        for value in tensors(record.features)
        if value.dtype == torch.float16
    )


def _groups(batch: Sequence[Prepared]) -> Iterator[list[int]]:
    """Yield the indexes of the rows that can be encoded together."""
    found: dict[str, list[int]] = {}
    for index, row in enumerate(batch):
        found.setdefault(passes_with(row), []).append(index)
    yield from found.values()


def passes_with(row: Prepared) -> str:
    """Return a text that is equal for rows that can be encoded together."""
    shapes = {name: _shape(value) for name, value in sorted(row.inputs.items())}
    return repr((row.channel, row.count.media, shapes))


def _encode_together(half: Any, rows: list[Prepared]) -> list[FeatureRecord] | None:
    """Encode rows together. Return None if the features cannot be assigned to rows."""
    inputs = {name: joined([row.inputs[name] for row in rows]) for name in rows[0].inputs}
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
            blank={name: list(row.inputs[name].shape) for name in made.blank},
        )
        for part, row in zip(parts, rows, strict=True)
    ]


def _shape(value: Any) -> Any:
    return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__

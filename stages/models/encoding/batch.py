"""Turns prepared chunks into feature records with the vision half, in batches or in passes of fixed
size.

Within a batch, rows whose encoder inputs have equal shapes are computed together. A row's bytes
depend on which rows these are. They do not depend on whether several batches are computed together.

A pass has a fixed number of rows. The module checks whether the bytes of an input then depend on
anything else:

1. Each input has a number of rows: 1 passes alone, more share a pass with inputs of the same shape,
   and copies of an input fill up the last pass.
2. An input of each size class (power of two of its values) is checked: at the first place beside
   copies of it, and at the last beside other values. One that passes alone is computed twice.
3. If both results are the same, bit for bit, the class holds. The result of the check is stored,
   and decides for all later jobs and workers on the same kind of device.
4. Inputs of a class that does not hold pass alone. If a half computes one input twice with
   different results, HalfChecked is raised: the run is planned again, in batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from artifacts.errors import HalfChecked
from artifacts.records.tensors import pack_tree
from artifacts.schema import HalfName
from artifacts.wording import counted
from stages.memory.meta_device import tensors
from stages.memory.oom_retry import item_fault
from stages.models.half_job import HalfJob
from stages.models.halves.features import Features, encode, is_pixels, refuse_other_count
from stages.models.halves.generate import UNDIVIDED
from stages.models.halves.records import CannotSplit, FeatureRecord, rule_of_input, split
from stages.models.halves.split_route import AUDIO
from stages.models.processors.processor_calls import joined
from stages.models.processors.side_inputs import Prepared
from stages.models.protocols import Half
from stages.models.streaming.load import run_calls
from stages.process.checks import PASSES, Verdicts

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


def encode_batches(
    half: Half, batches: Sequence[Sequence[Prepared]], part: HalfName = "vision"
) -> list[list[FeatureRecord]]:
    """Return a feature record for each chunk of each batch, in order. Sounds pass alone: they are
    small, and their bytes then depend on nothing else."""

    def encoded(groups: list[Group]) -> list[tuple[Group, list[FeatureRecord] | None]]:
        rows = [[batches[at][index] for index in indexes] for at, indexes in groups]
        features = run_calls(half, [partial(_encode_together, half, some, part) for some in rows])
        return list(zip(groups, features, strict=True))

    groups = _groups if part == "vision" else _alone
    together = encoded([(at, members) for at, b in enumerate(batches) for members in groups(b)])
    mixed = [(at, [i]) for (at, members), made in together if made is None for i in members]
    records: list[dict[int, FeatureRecord]] = [{} for _ in batches]
    for (at, indexes), made in [*together, *encoded(mixed)]:
        records[at].update(zip(indexes, made or (), strict=False))
    return [[by_index[index] for index in range(len(by_index))] for by_index in records]


def _groups(batch: Sequence[Prepared]) -> Iterator[list[int]]:
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(batch):
        groups.setdefault(passes_with(row), []).append(index)
    yield from groups.values()


def _alone(batch: Sequence[Prepared]) -> Iterator[list[int]]:
    yield from ([index] for index in range(len(batch)))


def passes_with(row: Prepared) -> str:
    """Return a text that is equal for rows that can be encoded together."""
    shapes = {name: _shape(value) for name, value in sorted(row.inputs.items())}
    return repr((row.channel, row.count.media, shapes))


def _encode_together(
    half: Half, rows: list[Prepared], part: HalfName = "vision"
) -> list[FeatureRecord] | None:
    """Encode rows together. Return None if the features cannot be assigned to rows."""
    inputs = {name: joined([row.inputs[name] for row in rows]) for name in rows[0].inputs}
    made: Features = encode(half, inputs, part)
    counts = [row.count for row in rows]
    if part == AUDIO:
        refuse_other_count(half, made[AUDIO], counts[0].tokens)
    by_row: list[dict[str, Any]] = [{} for _ in rows]
    rules: dict[str, Any] = {}
    try:
        for modality, output in made.items():
            pieces, rules[modality] = split(output, counts)
            for features, piece in zip(by_row, pieces, strict=True):
                features[modality] = piece
    except CannotSplit:
        return None
    return [
        FeatureRecord(
            features=features,
            rules=rules,
            needs=tuple(sorted(made.needs)),
            channel=row.channel,
            side=row.side,
            replacements=row.replacements,
            count=row.count,
            blank={name: list(row.inputs[name].shape) for name in made.blank},
        )
        for features, row in zip(by_row, rows, strict=True)
    ]


def _shape(value: Any) -> Any:
    return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


@dataclass(frozen=True, kw_only=True, slots=True)
class PassRow:
    """One input of the half."""

    prepared: Prepared
    rows: int
    """Rows of its pass."""

    @property
    def size_class(self) -> int:
        """Return the base-2 logarithm of its number of values, rounded up."""
        return sum(tensor.numel() for tensor in tensors(self.prepared.inputs)).bit_length()


class PassChecks:
    """The verdicts on the passes of one half."""

    def __init__(self, verdicts: Verdicts, half: HalfJob) -> None:
        self._verdicts = verdicts
        self._half = half
        # The threads of a CPU divide the rows of a product among them.
        self._threads = torch.get_num_threads() if half.device == "cpu" else 0

    def result(self, row: PassRow) -> bool | None:
        """Return whether bytes of this row's class depend on nothing else; None: not tried."""
        outcome = self._verdicts.outcome(PASSES, self.about(row))
        return None if outcome is None else bool(outcome["holds"])

    def about(self, row: PassRow) -> dict[str, str | int]:
        """Return what a check of this row is about: its class on this half."""
        rows = {"rows": row.rows, "size_class": row.size_class, "threads": self._threads}
        return {"half": self._half.digest, **rows}

    def decided(self, half: Half, row: PassRow) -> PassRow:
        """Return the row, alone if its class does not hold among others. A class without a verdict
        is checked. Raises HalfChecked if the half has no result that can be repeated."""
        holds = self.result(row)
        if self._check(half, row) if holds is None else holds:
            return row
        if row.rows == 1:
            raise HalfChecked(
                "the vision half computes one input twice with different results; "
                "inputs are encoded in batches"
            )
        return self.decided(half, replace(row, rows=1))

    def _check(self, half: Half, row: PassRow) -> bool:
        holds = _holds(half, row)
        features = f"features are {'the same' if holds else 'not the same'} each time"
        inputs = f"{counted(row.rows, 'input')} of 2^{row.size_class} values"
        text = f"{self._half.title}: {features}, in passes of {inputs}"
        return bool(self._verdicts.keep(PASSES, self.about(row), {"holds": holds}, text)["holds"])


def encode_passes(half: Half, rows: Sequence[PassRow], checks: PassChecks) -> list[FeatureRecord]:
    """Return the feature record of each row, in order. Raises HalfChecked."""
    rows = [checks.decided(half, row) for row in rows]
    passes = list(_passes(rows))
    filled = [_filled([rows[at].prepared for at in some], rows[some[0]].rows) for some in passes]
    by_row: dict[int, FeatureRecord] = {}
    for some, records in zip(passes, encode_batches(half, filled), strict=True):
        by_row.update(zip(some, records, strict=False))
    return [by_row[at] for at in range(len(rows))]


def _holds(half: Half, row: PassRow) -> bool:
    """Return whether the bytes of a row are the same at other places and beside other values. An
    encoder that refuses several rows at once takes each alone."""
    own, size = row.prepared, row.rows
    other = replace(own, inputs={name: _mirrored(value) for name, value in own.inputs.items()})
    try:
        first, second = encode_batches(half, [[own] * size, [*[other] * (size - 1), own]])
    except Exception as error:
        if size == 1 or item_fault(error) is None:
            raise
        return False
    return _bytes_of(first[0]) == _bytes_of(second[-1])


def _passes(rows: Sequence[PassRow]) -> Iterator[list[int]]:
    """Yield the indexes of the rows of each pass, which share their shape."""
    together: dict[tuple[int, str], list[int]] = {}
    for at, row in enumerate(rows):
        together.setdefault((row.rows, passes_with(row.prepared)), []).append(at)
    for (size, _), indexes in together.items():
        yield from (indexes[start : start + size] for start in range(0, len(indexes), size))


def _filled(some: list[Prepared], size: int) -> list[Prepared]:
    """Return a whole pass. What fills it up is a copy of an input, because some models leave out
    images of zeros."""
    return [*some, *[some[-1]] * (size - len(some))]


def _mirrored(value: Any) -> Any:
    """Return pixels of other content and the same shape; other inputs unchanged."""
    pixels = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1
    return value.flip(-1) if pixels else value


def _bytes_of(record: FeatureRecord) -> bytes:
    return pack_tree(record.to_tree())[1]

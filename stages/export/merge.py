"""Merges an adapter into one checkpoint: tensor by tensor, in the source's own types, without a
model in memory.

B x A is computed in 32 bit, multiplied by the scale, added in 32 bit, and the sum is rounded once
to the type that the tensor is stored in. PEFT's `merge_and_unload` does the same where the model is
loaded in that type and the adapter in 32 bit, as PEFT loads it by itself; its B x A may differ in
the last bit of 32, by the order in which a library sums. PEFT rounds once more where the adapter is
loaded in 16 bit, with `safe_merge`, and in tables of words; and before it adds, where the model is
loaded in another type than it is stored in.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.model_files import ModelFiles
from artifacts.regular import open_regular
from stages.export.merge_job import MergeJob
from stages.export.targets import TensorChange, changes_of
from stages.models.adapters.injection import read_matrix
from stages.models.adapters.reading import LoraAdapter, read_adapter
from stages.models.adapters.scales import TRAINED_AGAIN
from stages.models.hub.checkpoint import CONFIG, SMALL, not_whole, small_files
from stages.models.hub.headers import Header, TensorPlace, read_places
from stages.models.published import with_way
from stages.models.shards.layout import DTYPES, TensorSpec, lay_out
from stages.models.shards.writing import CHUNK_BYTES, claimed, write_checkpoint
from stages.process.job import job_of
from stages.process.report import Report

MORE_ROOM = (
    "The merged model is there until the export is done: free some space, or give a larger disk"
)


def run(told: dict[str, Any], report: Report) -> None:
    """Write the checkpoint of a MergeJob, and tell each file of weights as an item.

    A first note says how many `shards` there will be, and how many are `there`; a last one how many
    tensors are `merged`. Raises PenstockError.
    """
    job = job_of(MergeJob, told)
    planned = job.files
    with planned.compared():
        _merge(job, planned, report)


def _merge(job: MergeJob, planned: ModelFiles, report: Report) -> None:
    source, folder = Path(job.model), Path(job.folder)
    adapter = read_adapter(Path(job.adapter))
    headers, changes = changes_of(adapter, source, job.trust_remote_code)
    shards = lay_out(
        (TensorSpec(h.name, DTYPES[h.dtype], h.shape) for h in headers), job.shard_bytes
    )
    small = small_files(source, SMALL)
    small[CONFIG] = with_way(small[CONFIG], job.as_published)
    with claimed(folder, {**job.recipe, "shard_bytes": job.shard_bytes}):
        contents = _Merged(source, headers, adapter, changes)
        write_checkpoint(folder, shards, small, contents, report, MORE_ROOM, planned.check)
    report.note(merged=len(changes))


class _Merged:
    """The numbers of each tensor that is written."""

    def __init__(
        self,
        source: Path,
        headers: Sequence[Header],
        adapter: LoraAdapter,
        changes: Mapping[str, TensorChange],
    ) -> None:
        self._files = {header.name: source / header.shard for header in headers}
        self._adapter, self._changes = adapter, changes
        self._places = lru_cache(maxsize=1)(read_places)  # tensors come file by file

    def __call__(self, spec: TensorSpec) -> Iterator[torch.Tensor]:
        """Yield a tensor's numbers in pieces of whole rows. Raises UsageError where a sum is too
        large for its type."""
        change = self._changes.get(spec.name, TensorChange())
        path = self._files[spec.name]
        place = self._places(path)[spec.name]
        if change.whole:
            path, place = self._adapter.weights, self._adapter.places[change.whole]
        pieces = _rows(path, place)
        if change.low_rank is not None:
            pieces = self._added(spec, change, pieces)
        for piece in pieces:
            rounded = piece.to(spec.dtype)
            if change != TensorChange() and not rounded.isfinite().all():
                raise UsageError(
                    f"{self._adapter.folder} makes numbers of {spec.name} that are too large for "
                    f"{spec.dtype}, or none",
                    hint="It does not fit this model, or its training went wrong",
                )
            yield rounded

    def _added(
        self, spec: TensorSpec, change: TensorChange, pieces: Iterator[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """Yield the sums of a tensor's rows and what is added to them, in 32 bit at least."""
        low_rank = change.low_rank
        assert low_rank is not None
        a, b = (read_matrix(self._adapter, name) for name in (low_rank.a, low_rank.b))
        left, right = (a.mT, b.mT) if change.turned else (b, a)
        at = 0
        for piece in pieces:
            rows = piece.reshape(-1, spec.shape[1])
            added = (left[at : at + len(rows)] @ right).mul_(low_rank.scale)
            at += len(rows)
            yield rows + added


def _rows(path: Path, place: TensorPlace) -> Iterator[torch.Tensor]:
    """Yield a stored tensor in flat pieces of a few MB, each of whole rows. Raises
    EnvironmentFault."""
    dtype = DTYPES[place.dtype]
    row = max(1, math.prod(place.shape[1:])) * dtype.itemsize
    step = max(1, CHUNK_BYTES // row) * row
    try:
        with open_regular(path) as file:
            for start in range(place.start, place.end, step):
                file.seek(start)
                piece = bytearray(min(step, place.end - start))
                if file.readinto(piece) != len(piece):
                    raise not_whole(path)
                yield torch.frombuffer(piece, dtype=dtype)
    except OSError as error:
        raise EnvironmentFault(
            f"{path} cannot be read ({error.strerror})", hint=TRAINED_AGAIN
        ) from error

"""Merges an adapter into one checkpoint: tensor by tensor, in the source's own types, without
loading the model.

B x A is computed in 32 bit, multiplied by the scale and added in 32 bit. The sum is rounded once,
to the type in which the tensor is stored. PEFT's `merge_and_unload` does the same if the model is
loaded in that type and the adapter in 32 bit, which is PEFT's default. Its B x A may differ in the
last bit, because libraries sum in different orders.

PEFT rounds once more in these cases:

- The adapter is loaded in 16 bit.
- `safe_merge` is set.
- The layer is an embedding table.
- The model is loaded in another type than it is stored in; PEFT then rounds before it adds.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from artifacts.disk.regular_files import open_regular
from artifacts.errors import EnvironmentFault, UsageError
from stages.export import MergeJob
from stages.export.export_plan import refuse_unwritable
from stages.models.adapter_injection import read_matrix
from stages.models.adapter_modules import (
    COPY_HINT,
    FLOATS,
    MERGE_FIRST,
    LoraAdapter,
    LowRank,
    of_another_model,
    read_adapter,
)
from stages.models.halves.load import refuse_pickle
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.hub.checkpoint import CONFIG, Checkpoint, incomplete_file, small_files
from stages.models.hub.headers import Header, TensorPlace, read_headers, read_places
from stages.models.published import stating_as_published
from stages.models.shards.layout import (
    CHUNK_BYTES,
    DTYPES,
    TensorSpec,
    claimed,
    lay_out,
    write_checkpoint,
)
from stages.models.stored.layer_names import model_names
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorChange:
    """All changes that an adapter makes to one stored tensor."""

    whole: str = ""
    """Name of the adapter's tensor that replaces it; empty: none."""
    low_rank: LowRank | None = None
    """Matrices whose product is added to it."""
    transposed: bool = False
    """Whether the product is transposed before it is added."""


def changes_of(
    adapter: LoraAdapter, folder: Path, trusted: bool
) -> tuple[list[Header], dict[str, TensorChange]]:
    """Return all tensors of the checkpoint in a folder, and the changes by tensor name. Raises
    UsageError for an adapter of another model, EnvironmentFault for an incomplete checkpoint."""
    refuse_pickle(folder, trusted=False)
    config, cls = config_and_class(folder, trusted)
    headers = read_headers(Checkpoint(name=str(folder), folder=folder))
    refuse_unwritable(folder, config, headers)
    targets = _Targets(adapter, folder, skeleton_of(config, cls), headers)
    changes: dict[str, TensorChange] = {}
    for path, tensor in adapter.whole.items():
        header, _ = targets.find(path)
        targets.check_shape(path, header, adapter.places[tensor].shape)
        _once(changes, header, path, adapter)
        changes[header.name] = TensorChange(whole=tensor)
    for path, low_rank in adapter.low_rank.items():
        header, module = targets.find(f"{path}.weight")
        transposed = low_rank.embedding or _is_transposed(module, adapter)
        rows, columns = low_rank.shape
        shape = (columns, rows) if transposed else (rows, columns)
        targets.check_shape(path, header, shape)
        before = changes.get(header.name, TensorChange())
        if before.low_rank is not None:
            _once(changes, header, path, adapter)
        changes[header.name] = TensorChange(
            whole=before.whole, low_rank=low_rank, transposed=transposed
        )
    return headers, changes


def _once(
    changes: Mapping[str, TensorChange], header: Header, path: str, adapter: LoraAdapter
) -> None:
    if header.name in changes:
        raise UsageError(
            f"{adapter.folder} changes {header.name} twice, the second time as {path}",
            hint=MERGE_FIRST,
        )


def _is_transposed(module: torch.nn.Module | None, adapter: LoraAdapter) -> bool:
    """Return whether a module stores its weight transposed. PEFT decides by its class, too."""
    return adapter.transposed if module is None else not isinstance(module, torch.nn.Linear)


class _Targets:
    """The stored tensors of one checkpoint, by every name that an adapter may use."""

    def __init__(
        self,
        adapter: LoraAdapter,
        folder: Path,
        skeleton: "PreTrainedModel",
        headers: Sequence[Header],
    ) -> None:
        self._adapter, self._folder, self._skeleton = adapter, folder, skeleton
        self._stored = {header.name: header for header in headers}
        self._at: dict[str, Header] = {}
        """Path of a model parameter → the stored tensor that is loaded unchanged."""
        for header, path in zip(headers, model_names(skeleton, [*self._stored]), strict=True):
            if path and tuple(skeleton.get_parameter_or_buffer(path).shape) == header.shape:
                self._at[path] = header
        names = [*adapter.whole, *(f"{path}.weight" for path in adapter.low_rank)]
        self._renamed = dict(zip(names, model_names(skeleton, names), strict=True))
        ties = getattr(skeleton, "all_tied_weights_keys", None) or {}
        self._tied = {**{source: target for target, source in ties.items()}, **ties}

    def find(self, name: str) -> tuple[Header, torch.nn.Module | None]:
        """Return the tensor for a parameter name of an adapter, and the module that holds it
        unchanged, if any. Raises UsageError."""
        paths = [path for path in (name, self._renamed[name]) if path]
        tied = next((path for path in paths if path in self._tied), None)
        if tied is not None:
            raise UsageError(
                f"{self._adapter.folder} changes {tied}, which shares its weights with "
                f"{self._tied[tied]}: merging would change both",
                hint="Merge it with PEFT, and save the model with untied weights",
            )
        path = next((path for path in paths if path in self._at), None)
        if path is not None:
            return self._writable(self._at[path]), self._skeleton.get_submodule(
                path.rpartition(".")[0]
            )
        if name in self._stored:
            return self._writable(self._stored[name]), None
        raise self._missing(name, paths)

    def _writable(self, header: Header) -> Header:
        if header.dtype not in FLOATS:
            raise UsageError(
                f"{self._folder} stores {header.name} as {header.dtype}, which cannot be changed",
                hint="Give a checkpoint in 16 or 32 bit",
            )
        return header

    def _missing(self, name: str, paths: Sequence[str]) -> UsageError:
        places = self._skeleton.state_dict()
        if any(path in places for path in paths):
            return UsageError(
                f"{self._folder} stores {name} in another form than the model uses: in a larger "
                "tensor, or split into several",
                hint=MERGE_FIRST,
            )
        return of_another_model(
            self._adapter, f"changes {name}, which {self._folder} does not have"
        )

    def check_shape(self, path: str, header: Header, shape: tuple[int, ...]) -> None:
        """Raise UsageError for a change with another shape than its tensor."""
        if header.shape != shape:
            ours, other = (" x ".join(map(str, sides)) for sides in (header.shape, shape))
            reason = f"changes {path} of {other}, which is {ours} in {self._folder}"
            raise of_another_model(self._adapter, reason)


MORE_ROOM = (
    "The merged model is kept until the export is done: free some space, or use a larger disk"
)


def run(fields: JobFields, report: EventReporter) -> None:
    """Write the checkpoint of a MergeJob, and report each weight file as an item.

    A first note holds the number of `shards` and how many are `there` already, a last one the
    number of `merged` tensors. Raises PenstockError.
    """
    job = parse_job(MergeJob, fields)
    with job.files.compared():
        _merge(job, report)


def _merge(job: MergeJob, report: EventReporter) -> None:
    source, folder = Path(job.model), Path(job.folder)
    adapter = read_adapter(Path(job.adapter))
    headers, changes = changes_of(adapter, source, job.trust_remote_code)
    shards = lay_out(
        (TensorSpec(h.name, DTYPES[h.dtype], h.shape) for h in headers), job.shard_bytes
    )
    small = small_files(source)
    small[CONFIG] = stating_as_published(small[CONFIG], job.as_published)
    with claimed(folder, {**job.recipe, "shard_bytes": job.shard_bytes}):
        files = {header.name: source / header.shard for header in headers}
        # Tensors are requested file by file.
        places = lru_cache(maxsize=1)(read_places)
        contents = partial(_merged, files, places, adapter, changes)
        write_checkpoint(folder, shards, small, contents, report, MORE_ROOM, job.files.check)
    report.note(merged=len(changes))


def _merged(
    files: Mapping[str, Path],
    places: Callable[[Path], Mapping[str, TensorPlace]],
    adapter: LoraAdapter,
    changes: Mapping[str, TensorChange],
    spec: TensorSpec,
) -> Iterator[torch.Tensor]:
    """Yield a tensor in pieces of whole rows. Raises UsageError if a sum overflows its type."""
    change = changes.get(spec.name, TensorChange())
    path = files[spec.name]
    place = places(path)[spec.name]
    if change.whole:
        path, place = adapter.weights, adapter.places[change.whole]
    pieces = _rows(path, place)
    if change.low_rank is not None:
        pieces = _added(adapter, spec.shape[1], change.low_rank, change.transposed, pieces)
    for piece in pieces:
        rounded = piece.to(spec.dtype)
        if change != TensorChange() and not rounded.isfinite().all():
            raise UsageError(
                f"{adapter.folder} makes values of {spec.name} infinite or NaN in {spec.dtype}",
                hint="The adapter does not fit this model, or its training failed",
            )
        yield rounded


def _added(
    adapter: LoraAdapter,
    columns: int,
    low_rank: LowRank,
    transposed: bool,
    pieces: Iterator[torch.Tensor],
) -> Iterator[torch.Tensor]:
    """Yield the sums of the tensor and its change by rows, at least in 32 bit."""
    a, b = (read_matrix(adapter, name) for name in (low_rank.a, low_rank.b))
    left, right = (a.mT, b.mT) if transposed else (b, a)
    at = 0
    for piece in pieces:
        rows = piece.reshape(-1, columns)
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
                    raise incomplete_file(path)
                yield torch.frombuffer(piece, dtype=dtype)
    except OSError as error:
        raise EnvironmentFault(
            f"{path} cannot be read ({error.strerror})", hint=COPY_HINT
        ) from error

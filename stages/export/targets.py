"""Finds the stored tensors that an adapter changes. Reads headers, no weights.

An adapter names modules as they were called when it was trained. These may be those of this
version of transformers, those of an older one, which the loader renames, or, as older ones took
modules over from their files, those of the stored tensors themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artifacts.errors import UsageError
from stages.export.outline import refuse_unwritable
from stages.models.adapters.reading import (
    FLOATS,
    MERGE_FIRST,
    LoraAdapter,
    LowRank,
    of_another_model,
)
from stages.models.halves.classes import config_and_class, skeleton_of
from stages.models.halves.load import refuse_pickle
from stages.models.hub.checkpoint import Checkpoint
from stages.models.hub.headers import Header, read_headers
from stages.models.precision.weights import model_names


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorChange:
    """All that an adapter does to one stored tensor."""

    whole: str = ""
    """Name of the adapter's tensor that takes its place; empty: it stays."""
    low_rank: LowRank | None = None
    """Matrices whose product is added to it."""
    turned: bool = False
    """Whether that is added the other way round."""


def changes_of(
    adapter: LoraAdapter, folder: Path, trusted: bool
) -> tuple[list[Header], dict[str, TensorChange]]:
    """Return all tensors of the checkpoint in a folder, and by their names the changes of some.
    Raises UsageError for an adapter of another model, EnvironmentFault for a checkpoint that is not
    whole."""
    refuse_pickle(folder, trusted=False)
    config, cls = config_and_class(folder, trusted)
    headers = read_headers(Checkpoint(name=str(folder), folder=folder))
    refuse_unwritable(folder, config, headers)
    targets = _Targets(adapter, folder, skeleton_of(config, cls), headers)
    found: dict[str, TensorChange] = {}
    for path, tensor in adapter.whole.items():
        header, _ = targets.find(path)
        targets.check_shape(path, header, adapter.places[tensor].shape)
        _once(found, header, path, adapter)
        found[header.name] = TensorChange(whole=tensor)
    for path, low_rank in adapter.low_rank.items():
        header, module = targets.find(f"{path}.weight")
        turned = low_rank.embedding or _turned(module, adapter)
        rows, columns = low_rank.shape
        shape = (columns, rows) if turned else (rows, columns)
        targets.check_shape(path, header, shape)
        before = found.get(header.name, TensorChange())
        if before.low_rank is not None:
            _once(found, header, path, adapter)
        found[header.name] = TensorChange(whole=before.whole, low_rank=low_rank, turned=turned)
    return headers, found


def _once(
    found: Mapping[str, TensorChange], header: Header, path: str, adapter: LoraAdapter
) -> None:
    if header.name in found:
        raise UsageError(
            f"{adapter.folder} changes {header.name} twice, the second time as {path}",
            hint=MERGE_FIRST,
        )


def _turned(module: torch.nn.Module | None, adapter: LoraAdapter) -> bool:
    """Tell whether a module keeps its weight the other way round. PEFT goes by its class too."""
    return adapter.turned if module is None else not isinstance(module, torch.nn.Linear)


class _Targets:
    """The stored tensors of one checkpoint, by all names that an adapter may have for them."""

    def __init__(
        self, adapter: LoraAdapter, folder: Path, skeleton: Any, headers: Sequence[Header]
    ) -> None:
        self._adapter, self._folder, self._skeleton = adapter, folder, skeleton
        self._stored = {header.name: header for header in headers}
        self._at: dict[str, Header] = {}
        """Path of a parameter of the model → the tensor that it is loaded from as it is."""
        for header, path in zip(headers, model_names(skeleton, [*self._stored]), strict=True):
            if path and tuple(skeleton.get_parameter_or_buffer(path).shape) == header.shape:
                self._at[path] = header
        wanted = [*adapter.whole, *(f"{path}.weight" for path in adapter.low_rank)]
        self._renamed = dict(zip(wanted, model_names(skeleton, wanted), strict=True))
        ties = getattr(skeleton, "all_tied_weights_keys", None) or {}
        self._tied = {**{source: target for target, source in ties.items()}, **ties}

    def find(self, name: str) -> tuple[Header, torch.nn.Module | None]:
        """Return the tensor of a parameter that an adapter names, and the module of the model that
        has it, if one has it as it is. Raises UsageError."""
        paths = [path for path in (name, self._renamed[name]) if path]
        tied = next((path for path in paths if path in self._tied), None)
        if tied is not None:
            raise UsageError(
                f"{self._adapter.folder} changes {tied}, and the model has "
                f"{self._tied[tied]} share its numbers: merged, both would change",
                hint="Save the model with weights of their own for both, the adapter merged",
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
                f"{self._folder} stores {header.name} as {header.dtype}, to which nothing is added",
                hint="Give the checkpoint in 16 or 32 bit",
            )
        return header

    def _missing(self, name: str, paths: Sequence[str]) -> UsageError:
        places = self._skeleton.state_dict()
        if any(path in places for path in paths):
            return UsageError(
                f"{self._folder} stores {name} otherwise than the model computes with it, as a "
                "part of another tensor or of several",
                hint=MERGE_FIRST,
            )
        return of_another_model(self._adapter, f"changes {name}, which {self._folder} has not")

    def check_shape(self, path: str, header: Header, shape: tuple[int, ...]) -> None:
        """Refuse a change that has not the shape of its tensor. Raises UsageError."""
        if header.shape != shape:
            ours, other = (" x ".join(map(str, each)) for each in (header.shape, shape))
            why = f"changes {path} of {other}, which is {ours} in {self._folder}"
            raise of_another_model(self._adapter, why)

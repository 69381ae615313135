"""Maps each stored tensor of a checkpoint to its module and its export format. Reads headers, no
weights.

Tensor names in the files differ from module names, because the loader renames tensors. The loader
itself is asked for the mapping. It also gives the type that a tensor is loaded in, and the export
stores that type.
"""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artifacts.errors import UsageError
from artifacts.schema import Part
from artifacts.words import counted
from stages.models.halves.classes import config_and_class, skeleton_of
from stages.models.halves.load import refuse_pickle
from stages.models.hub.checkpoint import Checkpoint
from stages.models.hub.headers import Header, read_headers
from stages.models.precision.quantize import linears_of, quantizable, stored_settings
from stages.models.precision.weights import model_names
from stages.models.shards.layout import DTYPES


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor of the checkpoint that is exported."""

    name: str
    """Name in the file."""
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Type that it is loaded in."""
    module: str
    """Path of the linear module whose weight it is and which is quantized; else empty."""
    turned: bool
    """Whether the module keeps its weight the other way round."""

    @property
    def size(self) -> int:
        """Return its bytes as it is loaded."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportPlan:
    """The plan of a checkpoint that will be quantized."""

    tensors: tuple[StoredTensor, ...]
    """Tensors in the order of their files."""
    dtype: torch.dtype
    """Type in which its quantized layers compute."""
    unquantized: tuple[str, ...]
    """Paths of the linear modules that stay as they are."""

    @property
    def modules(self) -> list[str]:
        """Return the paths of the modules that are quantized."""
        return [tensor.module for tensor in self.tensors if tensor.module]

    def matrices_that_stay(self) -> list[str]:
        """Return the names in the files of all that may be linear layers and are not quantized."""
        matrices = (t for t in self.tensors if len(t.shape) == 2 and not t.module)
        ending = ".weight"
        return [t.name.removesuffix(ending) for t in matrices if t.name.endswith(ending)]


def plan_export(
    folder: Path,
    parts: Collection[Part],
    trusted: bool,
    takes: Callable[[torch.nn.Module], str] = lambda module: "",
) -> ExportPlan:
    """Return what becomes of the checkpoint in a folder when the linear layers of these parts are
    quantized. `takes` says why one of them cannot be, which then stays as it is. Raises UsageError
    for a checkpoint that cannot be written so, EnvironmentFault for one that is not whole."""
    refuse_pickle(folder, trusted=False)
    config, cls = config_and_class(folder, trusted)
    headers = read_headers(Checkpoint(name=str(folder), folder=folder))
    refuse_unwritable(folder, config, headers)
    dtype = _dtype_of(config, headers)
    for name in config.sub_configs:  # each is built in its own
        if (part := getattr(config, name, None)) is not None:
            part.dtype = dtype
    with _by_default(dtype):
        skeleton = skeleton_of(config, cls)
    linears = {path: m for part in parts for path, m in quantizable(skeleton, part).items()}
    quantized_paths = [path for path, module in linears.items() if not takes(module)]
    if not quantized_paths:
        first = next(iter(linears), "")
        why = f": {first} has {takes(linears[first])}" if first else ""
        raise UsageError(
            f"{folder} has no linear layer in its {' or '.join(parts)} part that can be "
            f"quantized so{why}",
            hint="Choose another --half, or another --group",
        )
    paths = model_names(skeleton, [header.name for header in headers])
    tensors = tuple(
        _tensor(folder, header, path, skeleton, dtype, quantized_paths)
        for header, path in zip(headers, paths, strict=True)
    )
    found = ExportPlan(
        tensors=tensors,
        dtype=dtype,
        unquantized=tuple(path for path in linears_of(skeleton) if path not in quantized_paths),
    )
    if missing := sorted(set(quantized_paths) - set(found.modules)):
        raise UsageError(
            f"{folder} stores {counted(len(missing), 'linear layer')} otherwise than the model "
            f"computes with them, such as {missing[0]}",
            hint="Such a model is quantized while it is loaded: --language-precision nf4",
        )
    return found


def _tensor(
    folder: Path,
    header: Header,
    path: str | None,
    skeleton: Any,
    dtype: torch.dtype,
    quantized_paths: Collection[str],
) -> StoredTensor:
    place = skeleton.get_parameter_or_buffer(path) if path else None
    owner = (path or "").removesuffix(".weight")
    # A converter of the loader's splits or joins what has another shape.
    quantized = (
        owner in quantized_paths and place is not None and tuple(place.shape) == header.shape
    )
    linear = skeleton.get_submodule(owner) if quantized else None
    return StoredTensor(
        name=header.name,
        file=folder / header.shard,
        shape=header.shape,
        dtype=_loaded_as(header, path, place, skeleton, dtype),
        module=owner if quantized else "",
        turned=quantized and type(linear) is not torch.nn.Linear,
    )


def _loaded_as(
    header: Header, path: str | None, place: Any, skeleton: Any, dtype: torch.dtype
) -> torch.dtype:
    """Return the type that the loader gives a tensor. What has no place in the model stays."""
    stored = DTYPES[header.dtype]
    if path is None or not stored.is_floating_point:
        return stored
    for pattern, kept in skeleton._get_dtype_plan(dtype).items():
        if re.search(pattern.replace("*", ".*"), path):
            return kept if isinstance(kept, torch.dtype) else stored
    found: torch.dtype = place.dtype
    return found if found.is_floating_point else stored


def _dtype_of(config: Any, headers: Collection[Header]) -> torch.dtype:
    """Return the type that the loader takes by itself."""
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    types = (DTYPES[header.dtype] for header in headers)
    return next((found for found in types if found.is_floating_point), torch.float32)


def refuse_unwritable(folder: Path, config: Any, headers: Collection[Header]) -> None:
    """Refuse a checkpoint in few bits, or in numbers that are not known. Raises UsageError."""
    settings = stored_settings(config)
    if settings is not None:
        method = settings.get("quant_method", "another method")
        raise UsageError(
            f"{folder} is quantized already (by {method})",
            hint="Give the checkpoint that it was made from",
        )
    odd = next((header for header in headers if header.dtype not in DTYPES), None)
    if odd is not None:
        raise UsageError(
            f"tensor {odd.name} of {folder} is stored as {odd.dtype}, which cannot be read",
            hint="Give a checkpoint in 16 or 32 bit",
        )


@contextmanager
def _by_default(dtype: torch.dtype) -> Iterator[None]:
    """Have a model built in this type, with those of its tensors that ask for another in that."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)

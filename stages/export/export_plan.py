"""Maps each stored tensor of a checkpoint to its module and its export format. Reads headers, no
weights.

Tensor names in the files differ from module names, because the loader renames tensors. The mapping
comes from the loader itself. So does the type in which a tensor is loaded, and the export stores
that type.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_utils import local_torch_dtype

from artifacts.errors import UsageError
from artifacts.schema import Part
from artifacts.wording import counted
from stages.models.halves.load import refuse_pickle
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.hub.checkpoint import Checkpoint
from stages.models.hub.headers import Header, read_headers
from stages.models.precision.quantize import linears_of, quantizable
from stages.models.shards.layout import DTYPES
from stages.models.stored.layer_names import model_names, stored_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor of the source checkpoint."""

    name: str
    """Name in the file."""
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Type in which it is loaded."""
    module: str
    """Path of the linear layer whose weight it is, if that is quantized; else empty."""
    transposed: bool
    """Whether the module stores its weight transposed."""

    @property
    def size(self) -> int:
        """Return its bytes after loading."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportPlan:
    """The plan of a quantized checkpoint."""

    tensors: tuple[StoredTensor, ...]
    """Tensors in file order."""
    dtype: torch.dtype
    """Type in which its quantized layers compute."""
    unquantized: tuple[str, ...]
    """Paths of the linear layers that are not quantized."""

    @property
    def modules(self) -> list[str]:
        """Return the paths of the quantized modules."""
        return [tensor.module for tensor in self.tensors if tensor.module]

    def unquantized_matrices(self) -> list[str]:
        """Return the stored names of all other tensors that may be linear layers."""
        matrices = (t for t in self.tensors if len(t.shape) == 2 and not t.module)
        ending = ".weight"
        return [t.name.removesuffix(ending) for t in matrices if t.name.endswith(ending)]


def plan_export(
    folder: Path,
    parts: Collection[Part],
    trusted: bool,
    takes: Callable[[torch.nn.Module], str] = lambda module: "",
) -> ExportPlan:
    """Plan the quantization of the linear layers of these parts of a checkpoint. `takes` returns
    why a layer cannot be quantized, or an empty text. Raises UsageError for a checkpoint that
    cannot be exported, EnvironmentFault for an incomplete one."""
    refuse_pickle(folder, trusted=False)
    config, cls = config_and_class(folder, trusted)
    headers = read_headers(Checkpoint(name=str(folder), folder=folder))
    refuse_unwritable(folder, config, headers)
    dtype = _dtype_of(config, headers)
    for name in config.sub_configs:  # each submodel uses its own type
        if (part := getattr(config, name, None)) is not None:
            part.dtype = dtype
    with local_torch_dtype(dtype):
        skeleton = skeleton_of(config, cls)
    linears = {path: m for part in parts for path, m in quantizable(skeleton, part).items()}
    quantized_paths = [path for path, module in linears.items() if not takes(module)]
    if not quantized_paths:
        first = next(iter(linears), "")
        reason = f": {first} has {takes(linears[first])}" if first else ""
        raise UsageError(
            f"{folder} has no linear layer in its {' or '.join(parts)} part that can be "
            f"quantized this way{reason}",
            hint="Choose another --half, or another --group",
        )
    paths = model_names(skeleton, [header.name for header in headers])
    tensors = tuple(
        _tensor(folder, header, path, skeleton, dtype, quantized_paths)
        for header, path in zip(headers, paths, strict=True)
    )
    plan = ExportPlan(
        tensors=tensors,
        dtype=dtype,
        unquantized=tuple(path for path in linears_of(skeleton) if path not in quantized_paths),
    )
    if missing := sorted(set(quantized_paths) - set(plan.modules)):
        raise UsageError(
            f"{folder} stores {counted(len(missing), 'linear layer')} in another form than the "
            f"model uses, such as {missing[0]}",
            hint="Quantize such a model when it is loaded: --language-precision nf4",
        )
    return plan


def _tensor(
    folder: Path,
    header: Header,
    path: str | None,
    skeleton: "PreTrainedModel",
    dtype: torch.dtype,
    quantized_paths: Collection[str],
) -> StoredTensor:
    place = skeleton.get_parameter_or_buffer(path) if path else None
    owner = (path or "").removesuffix(".weight")
    # The loader splits or joins tensors of another shape.
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
        transposed=quantized and type(linear) is not torch.nn.Linear,
    )


def _loaded_as(
    header: Header, path: str | None, place: Any, skeleton: "PreTrainedModel", dtype: torch.dtype
) -> torch.dtype:
    """Return the type in which the loader loads a tensor. A tensor without a place in the model
    keeps its type."""
    stored = DTYPES[header.dtype]
    if path is None or not stored.is_floating_point:
        return stored
    for pattern, plan_dtype in skeleton._get_dtype_plan(dtype).items():
        if re.search(pattern.replace("*", ".*"), path):
            return plan_dtype if isinstance(plan_dtype, torch.dtype) else stored
    computed: torch.dtype = place.dtype
    return computed if computed.is_floating_point else stored


def _dtype_of(config: "PreTrainedConfig", headers: Collection[Header]) -> torch.dtype:
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    types = (DTYPES[header.dtype] for header in headers)
    return next((dtype for dtype in types if dtype.is_floating_point), torch.float32)


def refuse_unwritable(folder: Path, config: Any, headers: Collection[Header]) -> None:
    """Raise UsageError for a quantized checkpoint, or one with unknown types."""
    settings = stored_settings(config)
    if settings is not None:
        method = settings.get("quant_method", "another method")
        raise UsageError(
            f"{folder} is already quantized (by {method})",
            hint="Give the checkpoint that it was made from",
        )
    odd = next((header for header in headers if header.dtype not in DTYPES), None)
    if odd is not None:
        raise UsageError(
            f"tensor {odd.name} of {folder} is stored as {odd.dtype}, which cannot be read",
            hint="Give a checkpoint in 16 or 32 bit",
        )

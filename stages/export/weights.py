"""Writes the weights of an outline in few bits, file by file. Knows no model.

One file's tensors are in memory at a time, with the tensor that is being read. How long a file will
be is not known before it is made, since some of what stands beside a quantized weight is text; so
files are filled by about what their tensors take, and one that is there is known by its tensors.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from artifacts.errors import EnvironmentFault
from stages.export.forms import WeightForm, specs_of
from stages.export.outline import Outline, StoredTensor
from stages.models.hub.headers import read_places
from stages.models.shards import SHARD_BYTES
from stages.models.shards.layout import TensorSpec, WeightShard, lay_out
from stages.models.shards.writing import in_pieces, write_shard


def files_of(
    outline: Outline, form: WeightForm, shard_bytes: int = SHARD_BYTES
) -> list[WeightShard]:
    """Return the files to be written, each with the tensors that go into it, of about the bytes
    that these will take."""
    return lay_out((_about(tensor, form) for tensor in outline.tensors), shard_bytes)


def _about(tensor: StoredTensor, form: WeightForm) -> TensorSpec:
    size = form.size(tensor.shape, tensor.dtype) if tensor.module else tensor.size
    return TensorSpec(tensor.name, torch.uint8, (size,))


def is_made(folder: Path, file: WeightShard, outline: Outline, form: WeightForm) -> bool:
    """Tell whether a file is there, whole and with all its tensors."""
    wanted = {tensor.name: tensor for tensor in outline.tensors}
    names: set[str] = set()
    for spec in file.tensors:
        names.update(form.names(spec.name) if wanted[spec.name].module else [spec.name])
    try:
        return (folder / file.name).exists() and set(read_places(folder / file.name)) == names
    except EnvironmentFault:
        return False


def write_file(
    folder: Path,
    file: WeightShard,
    outline: Outline,
    form: WeightForm,
    confirm: Callable[[], object] = bool,
) -> None:
    """Make one file, which appears if `confirm` raises nothing. Raises EnvironmentFault."""
    stored = {tensor.name: tensor for tensor in outline.tensors}
    made: dict[str, torch.Tensor] = {}
    for spec in file.tensors:
        tensor = stored[spec.name]
        weight = read_tensor(tensor)
        if not tensor.module:
            made[spec.name] = weight
            continue
        made.update(form.tensors(spec.name, weight.mT.contiguous() if tensor.turned else weight))
    widest_first = sorted(specs_of(made), key=lambda found: -found.dtype.itemsize)
    exact = WeightShard(name=file.name, tensors=tuple(widest_first))
    write_shard(folder, exact, lambda found: in_pieces(made[found.name]), confirm)


def read_tensor(tensor: StoredTensor) -> torch.Tensor:
    """Return a tensor in the type that it is loaded in."""
    # Not mapped: a map to be written to counts against a limit, however little is read.
    with safe_open(tensor.file, "pt", backend="pread") as file:
        found: torch.Tensor = file.get_tensor(tensor.name)
    return found.to(tensor.dtype)


def made_shards(folder: Path, files: Sequence[WeightShard]) -> list[WeightShard]:
    """Return the files as they were written, by their headers."""
    return [_as_written(folder / file.name) for file in files]


def _as_written(path: Path) -> WeightShard:
    places = read_places(path)
    specs = (TensorSpec(name, torch.uint8, (p.end - p.start,)) for name, p in places.items())
    return WeightShard(name=path.name, tensors=tuple(specs))

"""Has a half compute with weights that were rounded, as whoever unpacks them does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from stages.export.compressed import unpack
from stages.export.outline import Outline
from stages.export.rounding import Rounded, unrounded
from stages.models.hub.headers import read_places

Read = Callable[[], torch.Tensor]


def put_rounded(half: Any, outline: Outline, folder: Path, bits: int, group: int) -> int:
    """Put the weights of a packed checkpoint in place of the half's, and return how many. One that
    is fetched when it is wanted is replaced each time."""
    files = {name: path for path in folder.glob("*.safetensors") for name in read_places(path)}
    modules = dict(half.named_modules())
    count = 0
    for tensor in outline.tensors:
        linear = modules.get(tensor.module) if tensor.module else None
        if not isinstance(linear, nn.Linear):
            continue
        read = partial(_read, files, tensor.name, bits, group, linear.weight.dtype)
        if linear.weight.is_meta:
            linear.register_forward_pre_hook(partial(_replace, read))
        else:
            linear.weight = nn.Parameter(read().to(linear.weight.device), requires_grad=False)
        count += 1
    return count


def _replace(read: Read, linear: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
    weight = read().to(given[0].device)
    linear._parameters["weight"] = nn.Parameter(weight, requires_grad=False)


def _read(
    files: dict[str, Path], name: str, bits: int, group: int, dtype: torch.dtype
) -> torch.Tensor:
    found = []
    for extra in ("packed", "scale"):
        with safe_open(files[f"{name}_{extra}"], "pt", backend="pread") as file:
            found.append(file.get_tensor(f"{name}_{extra}"))
    words, scales = found
    return unrounded(Rounded(unpack(words, bits), scales.float()), group, dtype)

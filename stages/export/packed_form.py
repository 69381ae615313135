"""Stores weights in few bits for vLLM and SGLang: rounded by calibration where that was done, else
each number by itself. Knows no model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from artifacts.errors import UsageError
from artifacts.files import whole_file
from stages.export.compressed import quantization_config, specs, tensors
from stages.export.rounding import CannotRound, Rounded, round_to_nearest, suits


class Packed:
    """Whole numbers of 4 or 8 bits with one scale a group of columns."""

    def __init__(self, bits: int, group: int, rounded: Path | None = None) -> None:
        """`rounded` is the folder of weights that were calibrated."""
        self.bits = bits
        self.group = group
        self._rounded = rounded

    def takes(self, module: torch.nn.Module) -> str:
        if type(module) is not torch.nn.Linear:
            return f"a {type(module).__name__} keeps its weight otherwise"
        return suits(tuple(module.weight.shape), self.bits, self.group)

    def names(self, name: str) -> list[str]:
        return [spec.name for spec in specs(name, (1, self.group), torch.float16, 8, self.group)]

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return sum(spec.size for spec in specs("", shape, dtype, self.bits, self.group))

    def tensors(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if self._rounded is not None and (path := self._rounded / name).exists():
            found: dict[str, torch.Tensor] = load_file(path)
            return found
        try:
            rounded = round_to_nearest(weight, self.bits, self.group, weight.dtype)
        except CannotRound as error:
            raise UsageError(
                f"{name} cannot be rounded: {error}", hint="Check where the checkpoint comes from"
            ) from error
        return tensors(name, rounded, weight.dtype, self.bits)

    def settings(self, dtype: torch.dtype, spared: Iterable[str]) -> dict[str, Any]:
        return quantization_config(self.bits, self.group, spared)

    def keep(self, name: str, rounded: Rounded, dtype: torch.dtype) -> None:
        """Write what a weight was rounded to into the folder. Raises EnvironmentFault."""
        assert self._rounded is not None
        made = tensors(name, rounded, dtype, self.bits)
        with whole_file(self._rounded / name) as file:
            file.write(save({key: value.cpu() for key, value in made.items()}))

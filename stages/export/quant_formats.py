"""Quantization formats: the stored tensors of each weight, their names and their approximate
size."""

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from bitsandbytes import functional
from safetensors.torch import load_file, save

from artifacts.errors import UsageError
from artifacts.files import whole_file
from stages.export.rounding import CannotRound, Rounded, round_to_nearest, unsupported_shape
from stages.models.precision.quantize import settings_of
from stages.models.shards.layout import TensorSpec


class QuantFormat(Protocol):
    """A storage format of quantized weights."""

    def takes(self, module: torch.nn.Module) -> str:
        """Return why a linear layer's weight cannot be stored in this format; empty if it can."""

    def names(self, name: str) -> list[str]:
        """Return the names of the tensors in which a weight is stored."""

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Return the approximate bytes of these tensors."""

    def tensors(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return these tensors by name. The weight has the type in which the model computes."""

    def settings(self, dtype: torch.dtype, unquantized: Iterable[str]) -> dict[str, Any]:
        """Return the `quantization_config` of config.json; `unquantized` are the linear layers that
        are left out."""


BLOCK, SUPERBLOCK = 64, 256
"""Numbers per scale, and scales per second-level scale."""
PIECE = 1 << 20
"""Numbers that are quantized at once, a multiple of a block; quantizing makes several copies."""
STATE_BYTES = 4096
"""Approximate bytes of the tables of one weight and their description."""
ROW_FORMAT = 0
"""bitsandbytes' code for row-major numbers."""


class Nf4:
    """4 bits per number by the quantiles of a normal distribution; the scales are quantized in turn
    (QLoRA, https://arxiv.org/abs/2305.14314)."""

    def takes(self, module: torch.nn.Module) -> str:
        return ""

    def names(self, name: str) -> list[str]:
        extras = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        return [name, *(f"{name}.{extra}" for extra in (*extras, "quant_state.bitsandbytes__nf4"))]

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        numbers = math.prod(shape)
        return numbers // 2 + numbers // BLOCK + 4 * numbers // BLOCK // SUPERBLOCK + STATE_BYTES

    def tensors(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        pieces = [
            functional.quantize_4bit(piece, blocksize=BLOCK, quant_type="nf4")
            for piece in weight.reshape(-1).split(PIECE)
        ]
        scales = torch.cat([state.absmax for _, state in pieces])
        offset = scales.mean()
        small, second = functional.quantize_blockwise(scales - offset, blocksize=SUPERBLOCK)
        state = functional.QuantState(  # type: ignore[no-untyped-call]
            absmax=small,
            shape=weight.shape,
            code=pieces[0][1].code,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=weight.dtype,
            offset=offset,
            state2=second,
        )
        extras: dict[str, torch.Tensor] = state.as_dict(packed=True)
        packed = torch.cat([found for found, _ in pieces])
        return {name: packed, **{f"{name}.{key}": value for key, value in extras.items()}}

    def settings(self, dtype: torch.dtype, unquantized: Iterable[str]) -> dict[str, Any]:
        return dict(settings_of("nf4", dtype, unquantized).to_dict())


class Int8:
    """8 bits per number, one scale per row (LLM.int8(), https://arxiv.org/abs/2208.07339)."""

    def takes(self, module: torch.nn.Module) -> str:
        return ""

    def names(self, name: str) -> list[str]:
        owner = name.removesuffix("weight")
        return [name, f"{owner}SCB", f"{owner}weight_format"]

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return math.prod(shape) + 4 * shape[0]

    def tensors(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        pieces = [
            functional.int8_vectorwise_quant(rows.to(torch.float16))
            for rows in weight.split(max(1, PIECE // weight.shape[1]))
        ]
        numbers, scales = (torch.cat([piece[at] for piece in pieces]) for at in (0, 1))
        form = torch.tensor(ROW_FORMAT, dtype=torch.uint8)
        return dict(zip(self.names(name), (numbers, scales, form), strict=True))

    def settings(self, dtype: torch.dtype, unquantized: Iterable[str]) -> dict[str, Any]:
        return dict(settings_of("int8", dtype, unquantized).to_dict())


METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
WORD = 32


def specs(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, bits: int, group: int
) -> list[TensorSpec]:
    """Return the tensors that replace the weight `name`, which ends with `.weight`."""
    rows, columns = shape
    return [
        TensorSpec(f"{name}_packed", torch.int32, (rows, columns * bits // WORD)),
        TensorSpec(f"{name}_scale", dtype, (rows, columns // group)),
        TensorSpec(f"{name}_shape", torch.int64, (2,)),
    ]


def tensors(name: str, rounded: Rounded, dtype: torch.dtype, bits: int) -> dict[str, torch.Tensor]:
    """Return the tensors described by `specs`, by name."""
    return {
        f"{name}_packed": pack(rounded.numbers, bits),
        f"{name}_scale": rounded.scales.to(dtype),
        f"{name}_shape": torch.tensor(rounded.numbers.shape, dtype=torch.int64),
    }


def pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack int8 numbers [rows, columns] into int32 words [rows, columns * bits / 32]. The number of
    columns is a multiple of the numbers per word."""
    assert sys.byteorder == "little" and numbers.shape[1] * bits % WORD == 0
    # Bytes wrap around: -8 + 8 is the 0 of 4 bits.
    raised = numbers.view(torch.uint8) + 2 ** (bits - 1)
    if bits == 4:
        raised = raised[:, 0::2] | (raised[:, 1::2] << 4)
    packed: torch.Tensor = raised.contiguous().view(torch.int32)
    return packed


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the int8 numbers that were packed."""
    raised = packed.contiguous().view(torch.uint8)
    if bits == 4:
        raised = torch.stack((raised & 15, raised >> 4), dim=-1).flatten(1)
    numbers: torch.Tensor = (raised - 2 ** (bits - 1)).view(torch.int8)
    return numbers


def quantization_config(bits: int, group: int, ignore: Iterable[str]) -> dict[str, Any]:
    """Return the `quantization_config` of config.json as compressed-tensors 0.20 writes it.

    `ignore` lists the exact names of the linear layers that are not quantized. transformers
    compares its module names, vLLM the names in the files (mapped to its own); if they differ, give
    both.
    """
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "group_size": group,
        "strategy": "group",
        "dynamic": False,
    }
    linears = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": FORMAT,
    }
    return {
        "config_groups": {"group_0": linears},
        "quant_method": METHOD,
        "kv_cache_scheme": None,
        "format": FORMAT,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": sorted(set(ignore)),
        "moe_sparsity_config": None,
    }


class Packed:
    """Integers of 4 or 8 bits, one scale per group of columns."""

    def __init__(self, bits: int, group: int, rounded: Path | None = None) -> None:
        """`rounded` is the folder of calibrated weights."""
        self.bits = bits
        self.group = group
        self._rounded = rounded

    def takes(self, module: torch.nn.Module) -> str:
        if type(module) is not torch.nn.Linear:
            return f"a weight in the layout of {type(module).__name__}"
        return unsupported_shape(tuple(module.weight.shape), self.bits, self.group)

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

    def settings(self, dtype: torch.dtype, unquantized: Iterable[str]) -> dict[str, Any]:
        return quantization_config(self.bits, self.group, unquantized)

    def keep(self, name: str, rounded: Rounded, dtype: torch.dtype) -> None:
        """Write a quantized weight into the folder. Raises EnvironmentFault."""
        assert self._rounded is not None
        made = tensors(name, rounded, dtype, self.bits)
        with whole_file(self._rounded / name) as file:
            file.write(save({key: value.cpu() for key, value in made.items()}))

"""Writes weights in few bits in compressed-tensors' form `pack-quantized`. Knows no file.

A module X has `X.weight_packed` (int32 [rows, columns * bits / 32], the first number in the lowest
bits, each plus half its range), `X.weight_scale` (the checkpoint's type, [rows, columns / group])
and `X.weight_shape` (int64: rows, columns) in place of `X.weight`. transformers reads that with the
package compressed-tensors, vLLM by itself: checked against the source of 0.33.0, in
`vllm/model_executor/layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py`
(these three tensors, their types and shapes) and `…/compressed_tensors/compressed_tensors.py`
(`from_config`, `_get_scheme_from_parts`: `format` and the `weights` of a config group).
"""

import sys
from collections.abc import Iterable
from typing import Any

import torch

from stages.export.rounding import Rounded
from stages.models.shards.layout import TensorSpec

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
WORD = 32


def specs(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, bits: int, group: int
) -> list[TensorSpec]:
    """Return the tensors that take the place of the one called `name`, which is `X.weight`."""
    rows, columns = shape
    return [
        TensorSpec(f"{name}_packed", torch.int32, (rows, columns * bits // WORD)),
        TensorSpec(f"{name}_scale", dtype, (rows, columns // group)),
        TensorSpec(f"{name}_shape", torch.int64, (2,)),
    ]


def tensors(name: str, rounded: Rounded, dtype: torch.dtype, bits: int) -> dict[str, torch.Tensor]:
    """Return name → tensor of those that `specs` tells."""
    return {
        f"{name}_packed": pack(rounded.numbers, bits),
        f"{name}_scale": rounded.scales.to(dtype),
        f"{name}_shape": torch.tensor(rounded.numbers.shape, dtype=torch.int64),
    }


def pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack int8 numbers [rows, columns] into int32 words [rows, columns * bits / 32]. The columns
    are a multiple of those of a word."""
    assert sys.byteorder == "little" and numbers.shape[1] * bits % WORD == 0
    # Bytes wrap around: -8 and 8 are the 0 of 4 bits.
    raised = numbers.view(torch.uint8) + 2 ** (bits - 1)
    if bits == 4:
        raised = raised[:, 0::2] | (raised[:, 1::2] << 4)
    words: torch.Tensor = raised.contiguous().view(torch.int32)
    return words


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the int8 numbers that `pack` was given."""
    raised = words.contiguous().view(torch.uint8)
    if bits == 4:
        raised = torch.stack((raised & 15, raised >> 4), dim=-1).flatten(1)
    numbers: torch.Tensor = (raised - 2 ** (bits - 1)).view(torch.int8)
    return numbers


def quantization_config(bits: int, group: int, ignore: Iterable[str]) -> dict[str, Any]:
    """Return what config.json says of such weights, as compressed-tensors 0.20 writes it.

    `ignore` are the linear modules that stay as they are, each by its exact name. transformers
    compares names of its modules, vLLM those of the files (which it maps to its own): where they
    differ, give both.
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

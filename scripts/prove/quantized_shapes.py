"""Says which tensors a quantized checkpoint stores for a linear layer, by its published
`quantization_config`: their local names, types and shapes, and no data."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tests.support.builders.plan_cases import Shape

Settings = Mapping[str, Any]
LANGUAGE_ONLY = ("awq", "gptq")
"""Methods whose tools quantize layers of the language half alone."""
VISION = ("visual", "vision", "multi_modal_projector", "merger", "audio")
BLOCK = 64
"""Numbers of a block of bitsandbytes in 4 bit."""
NESTED = 256
"""Scales of a block that bitsandbytes quantizes again."""


def awq(rows: int, columns: int, settings: Settings) -> dict[str, Shape]:
    words, groups = rows * 4 // 32, columns // _group(settings, columns)
    return {
        "qweight": Shape(dtype="I32", shape=(columns, words)),
        "qzeros": Shape(dtype="I32", shape=(groups, words)),
        "scales": Shape(dtype="F16", shape=(groups, rows)),
    }


def gptq(rows: int, columns: int, settings: Settings) -> dict[str, Shape]:
    bits, groups = int(settings.get("bits", 4)), columns // _group(settings, columns)
    return {
        "qweight": Shape(dtype="I32", shape=(columns * bits // 32, rows)),
        "qzeros": Shape(dtype="I32", shape=(groups, rows * bits // 32)),
        "scales": Shape(dtype="F16", shape=(groups, rows)),
        "g_idx": Shape(dtype="I32", shape=(columns,)),
    }


def compressed(rows: int, columns: int, settings: Settings) -> dict[str, Shape]:
    weights = next(iter(settings["config_groups"].values()))["weights"]
    bits, groups = int(weights["num_bits"]), columns // _group(weights, columns)
    scales = {"weight_scale": Shape(dtype="BF16", shape=(rows, groups))}
    if settings["format"] == "pack-quantized":
        packed = Shape(dtype="I32", shape=(rows, math.ceil(columns * bits / 32)))
        return {
            "weight_packed": packed,
            **scales,
            "weight_shape": Shape(dtype="I64", shape=(2,)),
        }
    dtype = "I8" if weights.get("type") == "int" else "F8_E4M3"
    return {"weight": Shape(dtype=dtype, shape=(rows, columns)), **scales}


def fp8(rows: int, columns: int, settings: Settings) -> dict[str, Shape]:
    weight = Shape(dtype="F8_E4M3", shape=(rows, columns))
    block = settings.get("weight_block_size")
    if not block:
        return {"weight": weight, "weight_scale": Shape(dtype="F32", shape=())}
    scales = (math.ceil(rows / block[0]), math.ceil(columns / block[1]))
    return {"weight": weight, "weight_scale_inv": Shape(dtype="F32", shape=scales)}


def bitsandbytes(rows: int, columns: int, settings: Settings) -> dict[str, Shape]:
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        return {
            "weight": Shape(dtype="I8", shape=(rows, columns)),
            "SCB": Shape(dtype="F32", shape=(rows,)),
        }
    count = rows * columns
    blocks = count // BLOCK
    return {
        "weight": Shape(dtype="U8", shape=(count // 2, 1)),
        "weight.absmax": Shape(dtype="U8", shape=(blocks,)),
        "weight.nested_absmax": Shape(dtype="F32", shape=(math.ceil(blocks / NESTED),)),
        "weight.nested_quant_map": Shape(dtype="F32", shape=(256,)),
        "weight.quant_map": Shape(dtype="F32", shape=(16,)),
        "weight.quant_state.bitsandbytes__nf4": Shape(dtype="U8", shape=(82,)),
    }


def _group(settings: Settings, columns: int) -> int:
    """Return the columns that share a scale."""
    size = settings.get("group_size") or -1
    return int(size) if size > 0 else columns


METHODS: dict[str, Callable[[int, int, Settings], dict[str, Shape]]] = {
    "awq": awq,
    "gptq": gptq,
    "compressed-tensors": compressed,
    "fp8": fp8,
    "bitsandbytes": bitsandbytes,
}
"""`quant_method` → the tensors that it stores for a layer of these rows and columns."""


def is_quantized(name: str, settings: Settings, index: Iterable[str]) -> bool:
    """Return whether the linear layer with a weight of this name is quantized: by the index where
    it says so, else by the settings."""
    stem = name.removesuffix(".weight")
    locals_ = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "weight.absmax")
    if any(local in one for one in index for local in locals_):
        return any(f"{stem}.{local}" in index for local in locals_)
    if stem.endswith("lm_head"):
        return False
    method = settings.get("quant_method")
    if method in LANGUAGE_ONLY and any(word in name for word in VISION):
        return False
    left_out = (settings.get(n) or () for n in ("modules_to_not_convert", "ignore"))
    skipped = (*left_out, settings.get("llm_int8_skip_modules") or ())
    return not any(_names(pattern, stem) for some in skipped for pattern in some)


def _names(pattern: str, stem: str) -> bool:
    """Return whether an exception of a configuration names a layer."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), stem) is not None
    return pattern in stem

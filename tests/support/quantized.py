"""Checkpoints as other programs quantize them, written by plain loops that share nothing with the
reader. Beside each there is its twin: the weights that it means, in 16 bit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from stages.models.hub.headers import Header
from stages.models.shards.layout import DTYPE_NAMES
from stages.models.stored.codes import codes_of, unpack
from stages.models.stored.layouts import Settings, StoredLayer, recognize
from tests.support.builders.plan_cases import PlanCase, Shape, make_folder, write_header
from tests.support.builders.quantized import is_quantized
from tests.support.families import checkpoint, made_once

Tensors = dict[str, torch.Tensor]
GROUP = 16
"""Columns that share a scale."""
BLOCK = 24
"""Rows and columns of a block of FP8, which no layer is a multiple of."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP8 = torch.float8_e4m3fn


def words_down(numbers: np.ndarray, bits: int) -> torch.Tensor:
    """[n, m] as int32 words of rows [n x bits / 32, m], bit by bit, the lowest first."""
    high = -(-numbers.shape[0] * bits // 32)
    made = np.zeros((high, numbers.shape[1]), np.uint32)
    for row, values in enumerate(numbers.astype(np.uint32)):
        for bit in range(bits):
            at = row * bits + bit
            made[at // 32] |= ((values >> np.uint32(bit)) & np.uint32(1)) << np.uint32(at % 32)
    return torch.from_numpy(made.view(np.int32).copy())


def words_along(numbers: np.ndarray, bits: int) -> torch.Tensor:
    return words_down(numbers.T, bits).T.contiguous()


def awq_words(numbers: np.ndarray) -> torch.Tensor:
    made = np.zeros((numbers.shape[0], numbers.shape[1] // 8), np.uint32)
    for word in range(made.shape[1]):
        for place, column in enumerate(AWQ_ORDER):
            codes = numbers[:, word * 8 + column].astype(np.uint32)
            made[:, word] |= codes << np.uint32(4 * place)
    return torch.from_numpy(made.view(np.int32).copy())


@dataclass(frozen=True)
class Rounded:
    """A weight in whole numbers."""

    codes: np.ndarray
    """[rows, columns], 0 and up."""
    zeros: np.ndarray
    """[rows, groups]"""
    scales: torch.Tensor
    """[rows, groups], in the type of the file."""
    group: np.ndarray
    """Group of each column."""

    @property
    def meant(self) -> torch.Tensor:
        numbers = torch.from_numpy(self.codes - self.zeros[:, self.group]).float()
        return numbers * self.scales.float()[:, torch.from_numpy(self.group)]


def rounded(
    weight: torch.Tensor,
    bits: int,
    dtype: torch.dtype,
    *,
    symmetric: bool = False,
    shuffled: bool = False,
    size: int = GROUP,
) -> Rounded:
    rows, columns = weight.shape
    order = np.arange(columns)
    if shuffled:
        order = np.random.default_rng(rows * columns).permutation(columns)
    group = np.empty(columns, np.int64)
    group[order] = np.arange(columns) // size
    top, groups = 2**bits - 1, -(-columns // size)  # the last group may be short
    parts = [weight.float().numpy()[:, group == number] for number in range(groups)]
    if symmetric:
        largest = np.stack([np.abs(part).max(-1) for part in parts], -1)
        scales = largest / (2 ** (bits - 1) - 0.5)
        zeros = np.full((rows, groups), 2 ** (bits - 1), np.int64)
    else:
        low = np.minimum(np.stack([part.min(-1) for part in parts], -1), 0)
        high = np.maximum(np.stack([part.max(-1) for part in parts], -1), 0)
        scales = (high - low) / top
        zeros = np.clip(np.round(-low / np.maximum(scales, 1e-6)), 1, top).astype(np.int64)
    kept = torch.from_numpy(np.maximum(scales, 1e-4)).to(dtype)
    each = kept.float().numpy()[:, group]
    codes = np.round(weight.float().numpy() / each + zeros[:, group])
    return Rounded(np.clip(codes, 0, top).astype(np.int64), zeros, kept, group)


def _awq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    made = rounded(weight, 4, torch.float16)
    return {
        "qweight": awq_words(made.codes.T),
        "qzeros": awq_words(made.zeros.T),
        "scales": made.scales.T.contiguous(),
    }, made.meant


def _gptq(
    weight: torch.Tensor, bits: int = 4, *, v2: bool = False, **more: bool
) -> tuple[Tensors, torch.Tensor]:
    made = rounded(weight, bits, torch.float16, **{"symmetric": True, **more})
    zeros = made.zeros - (not v2)
    return {
        "qweight": words_down(made.codes.T, bits),
        "qzeros": words_along(zeros.T, bits),
        "scales": made.scales.T.contiguous(),
        "g_idx": torch.from_numpy(made.group).int(),
    }, made.meant


def _pack(
    weight: torch.Tensor, bits: int = 4, *, channel: bool = False, old: bool = False, **more: bool
) -> tuple[Tensors, torch.Tensor]:
    size = weight.shape[1] if channel else GROUP
    made = rounded(weight, bits, torch.bfloat16, size=size, **{"symmetric": True, **more})
    found: Tensors = {
        "weight_packed": words_along(made.codes, bits),
        "weight_scale": made.scales,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not more.get("symmetric", True):
        signed = torch.from_numpy(made.zeros - 2 ** (bits - 1)).to(torch.int8)
        found["weight_zero_point"] = signed if old else words_down(made.zeros, bits)
    if more.get("shuffled"):
        found["weight_g_idx"] = torch.from_numpy(made.group).int()
    return found, made.meant


def _int8(weight: torch.Tensor, *, zeros: bool = False) -> tuple[Tensors, torch.Tensor]:
    scales = (weight.float().abs().amax(1, keepdim=True) / 120).clamp(1e-4).bfloat16()
    zero = torch.full(scales.shape, 3 * zeros, dtype=torch.int8)
    codes = (weight.float() / scales.float() + zero).round().clamp(-128, 127).to(torch.int8)
    found = {"weight": codes, "weight_scale": scales}
    meant = (codes.float() - zero.float()) * scales.float()
    return {**found, **({"weight_zero_point": zero} if zeros else {})}, meant


def _fp8(weight: torch.Tensor, form: str, name: str) -> tuple[Tensors, torch.Tensor]:
    rows, columns = weight.shape
    tall, wide = {"tensor": (rows, columns), "row": (1, columns), "block": (BLOCK, BLOCK)}[form]
    codes, meant = torch.empty(rows, columns, dtype=FP8), torch.empty(rows, columns)
    scales = torch.empty(-(-rows // tall), -(-columns // wide))
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            at = (
                slice(row * tall, row * tall + tall),
                slice(column * wide, column * wide + wide),
            )
            scales[row, column] = float(weight[at].float().abs().max()) / 400 + 1e-6
            codes[at] = (weight[at].float() / scales[row, column]).to(FP8)
            meant[at] = codes[at].float() * scales[row, column]
    stored = scales.reshape(()) if form == "tensor" else scales
    return {"weight": codes, name: stored, "input_scale": torch.tensor(0.02)}, meant


def _fp4(weight: torch.Tensor, size: int) -> tuple[Tensors, torch.Tensor]:
    rows, columns = weight.shape
    largest = weight.float().reshape(rows, -1, size).abs().amax(-1) / 6 + 1e-6
    found: Tensors
    if size == 16:
        factor = torch.tensor([400 / float(largest.max())])
        stored = (largest * factor).to(FP8)
        scales = stored.float() / factor
        found = {"weight_scale": stored, "weight_global_scale": factor}
    else:
        exponents = torch.floor(torch.log2(largest)) + 1
        scales = torch.exp2(exponents)
        found = {"weight_scale": (exponents + 127).to(torch.uint8)}
    codes = np.zeros((rows, columns), np.uint8)
    meant = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            scale = float(scales[row, column // size])
            number = float(weight[row, column]) / scale if scale else 0.0
            nearest = min(range(8), key=lambda n: abs(E2M1[n] - abs(number)))
            codes[row, column] = nearest + 8 * (number < 0)
            meant[row, column] = E2M1[nearest] * (-1 if number < 0 else 1)
    packed = torch.from_numpy(codes[:, 0::2] | (codes[:, 1::2] << 4))
    wide = scales.repeat_interleave(size, 1)
    return {"weight_packed": packed, **found}, meant * wide


def compressed(form: str, weights: dict[str, Any], inputs: Any = None, **more: Any) -> Any:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["re:.*vision.*", "re:visual.*", "lm_head"],
        "config_groups": {"group_0": group},
        **more,
    }


def _ints(bits: int, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "strategy": "group", "group_size": GROUP, **more}


AWQ: dict[str, Any] = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": GROUP,
    "version": "gemm",
    "zero_point": True,
    "modules_to_not_convert": None,
}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True}
DYNAMIC = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
BLOCKS: dict[str, Any] = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
    "modules_to_not_convert": ["lm_head", "visual"],
}
WHOLE: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "static"}
ROWS = {"num_bits": 8, "type": "float", "strategy": "channel"}
INT_ROWS = {**ROWS, "type": "int"}
FLOAT4: dict[str, Any] = {"num_bits": 4, "type": "float"}

Quantize = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]


@dataclass(frozen=True)
class Layout:
    """One form in which checkpoints are published."""

    quantize: Quantize
    """Gives the tensors of a layer by local name, and the weight that they mean in 32 bit."""
    settings: dict[str, Any]
    """`quantization_config` of config.json."""
    label: str
    """What captions call it."""
    dtype: str = "bfloat16"
    """Type that config.json states."""
    packs: bool = True
    """Whether it has 4 or 8 bits."""


LAYOUTS: dict[str, Layout] = {
    "awq": Layout(_awq, AWQ, "awq", "float16"),
    "gptq": Layout(_gptq, GPTQ, "gptq-int4", "float16"),
    "gptq-asymmetric": Layout(
        lambda w: _gptq(w, symmetric=False), {**GPTQ, "sym": False}, "gptq-int4", "float16"
    ),
    "gptq-2": Layout(lambda w: _gptq(w, 2), {**GPTQ, "bits": 2}, "gptq-int2", "float16", False),
    "gptq-8": Layout(lambda w: _gptq(w, 8), {**GPTQ, "bits": 8}, "gptq-int8", "float16"),
    "gptq-v2": Layout(
        lambda w: _gptq(w, v2=True, symmetric=False),
        {**GPTQ, "sym": False, "checkpoint_format": "gptq_v2"},
        "gptq-int4",
        "float16",
    ),
    "gptq-unsorted": Layout(
        lambda w: _gptq(w, shuffled=True), {**GPTQ, "desc_act": True}, "gptq-int4", "float16"
    ),
    "w4a16": Layout(_pack, compressed("pack-quantized", _ints(4)), "w4a16"),
    "w4a16-asymmetric": Layout(
        lambda w: _pack(w, symmetric=False),
        compressed("pack-quantized", _ints(4, symmetric=False)),
        "w4a16",
    ),
    "w4a16-old-zeros": Layout(
        lambda w: _pack(w, symmetric=False, old=True),
        compressed("pack-quantized", _ints(4, symmetric=False)),
        "w4a16",
    ),
    "w4a16-unsorted": Layout(
        lambda w: _pack(w, shuffled=True),
        compressed("pack-quantized", _ints(4, actorder="group")),
        "w4a16",
    ),
    "w4a16-channel": Layout(
        lambda w: _pack(w, channel=True),
        compressed("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "channel"}),
        "w4a16",
    ),
    **{
        f"w{bits}a16": Layout(
            lambda w, bits=bits: _pack(w, bits, symmetric=bits == 8),  # type: ignore[misc]
            compressed("pack-quantized", _ints(bits, symmetric=bits == 8)),
            f"w{bits}a16",
            packs=bits == 8,
        )
        for bits in (2, 3, 5, 6, 8)
    },
    "w8a8": Layout(_int8, compressed("int-quantized", INT_ROWS, DYNAMIC), "w8a8"),
    "w8a8-asymmetric": Layout(
        lambda w: _int8(w, zeros=True),
        compressed("int-quantized", {**INT_ROWS, "symmetric": False}),
        "w8a8",
    ),
    "fp8-row": Layout(
        lambda w: _fp8(w, "row", "weight_scale"),
        compressed("float-quantized", ROWS, DYNAMIC, kv_cache_scheme={"num_bits": 8}),
        "fp8",
    ),
    "fp8-block": Layout(lambda w: _fp8(w, "block", "weight_scale_inv"), BLOCKS, "fp8"),
    "fp8-tensor": Layout(lambda w: _fp8(w, "tensor", "weight_scale_inv"), WHOLE, "fp8"),
    "nvfp4": Layout(
        lambda w: _fp4(w, 16),
        compressed("nvfp4-pack-quantized", {**FLOAT4, "group_size": 16}),
        "nvfp4",
    ),
    "mxfp4": Layout(
        lambda w: _fp4(w, 32),
        compressed("mxfp4-pack-quantized", {**FLOAT4, "group_size": 32}),
        "mxfp4",
    ),
}
"""Name → layout."""
MIXED = compressed("mixed-precision", _ints(4))
MIXED["config_groups"]["group_1"] = {"targets": ["re:.*attn.*"], "weights": _ints(8)}
"""Settings of a checkpoint with attention in 8 bit and MLPs in 4."""


def name_of_today(name: str) -> str:
    """The name that transformers 5 gives a tensor of a Qwen-VL saved by version 4."""
    for before, after in (("visual.", "model.visual."), ("model.", "model.language_model.")):
        if name.startswith(before):
            return name.replace(before, after, 1)
    return name


def write_quantized(
    source: Path,
    to: Path,
    layout: str,
    *,
    rename: Callable[[str], str] = lambda name: name,
    nested: bool = False,
    chosen: Callable[[str], bool] = is_quantized,
) -> Path:
    """Write a checkpoint of `source` in this layout (`mixed`: two of them), and the twin beside it,
    in `<to>-twin`. `nested`: the settings are in the text model's part of config.json."""
    known = LAYOUTS["w4a16" if layout == "mixed" else layout]
    dtype = getattr(torch, known.dtype)
    stored: Tensors = {}
    meant: Tensors = {}
    for name, weight in load_file(source / "model.safetensors").items():
        plain = weight.to(dtype) if weight.is_floating_point() else weight
        name = rename(name)
        if not chosen(name):
            stored[name] = meant[name] = plain
            continue
        eight = layout == "mixed" and "attn" in name
        tensors, value = (LAYOUTS["w8a16"] if eight else known).quantize(plain)
        base = name.removesuffix("weight")
        stored |= {base + local: tensor.contiguous() for local, tensor in tensors.items()}
        meant[name] = value.to(dtype)
    assert len(stored) > len(meant) or "input_scale" not in known.settings
    settings = MIXED if layout == "mixed" else known.settings
    for folder, weights, given in ((to, stored, settings), (twin_of(to), meant, None)):
        shutil.copytree(source, folder)
        config = json.loads((folder / "config.json").read_text())
        parts = [config, *(part for part in config.values() if isinstance(part, dict))]
        for part in parts:
            part.update({"dtype": known.dtype} if "dtype" in part or part is config else {})
        if given is not None:
            (config["text_config"] if nested else config)["quantization_config"] = given
        (folder / "config.json").write_text(json.dumps(config))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return to


@made_once
def quantized_checkpoint(folder: Path, layout: str) -> None:
    write_quantized(checkpoint("qwen2_5_vl"), folder, layout)


def header(name: str, tensor: torch.Tensor) -> Header:
    return Header(name, "x", DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), tensor.nbytes)


def layer_of(tensors: Tensors, rows: int, columns: int, settings: dict[str, Any]) -> StoredLayer:
    parts = {name: header(f"m.{name}", tensor) for name, tensor in tensors.items()}
    parts.pop("input_scale", None)
    layer = StoredLayer(name="m.weight", path="m.weight", parts=parts, rows=rows, columns=columns)
    return recognize(layer, Settings.of(settings))


def layer_in(layout: str, rows: int, columns: int) -> tuple[StoredLayer, Tensors, torch.Tensor]:
    """A layer in a layout, its tensors, and the weight that they mean."""
    tensors, meant = LAYOUTS[layout].quantize(noise(rows, columns))
    return layer_of(tensors, rows, columns, LAYOUTS[layout].settings), tensors, meant


def read(tensors: Tensors, layer: StoredLayer, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return unpack(layer, codes_of(layer, tensors), dtype, dtype)


def noise(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) * 0.02


def twin_of(folder: Path) -> Path:
    """The checkpoint in 16 bit that means the same."""
    return folder.with_name(f"{folder.name}-twin")


def write_headers(case: PlanCase, folder: Path, size: int = 128) -> Path:
    """A folder of headers alone: the dimensions of a model, quantized by AWQ."""
    make_folder(case, folder)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    tensors = {}
    for name, shape in case.tensors.items():
        if not is_quantized(name):
            tensors[name] = Shape(dtype="F16", shape=shape)
            continue
        (rows, columns), base = shape, name.removesuffix("weight")
        tensors[f"{base}qweight"] = Shape(dtype="I32", shape=(columns, rows // 8))
        tensors[f"{base}qzeros"] = Shape(dtype="I32", shape=(columns // size, rows // 8))
        tensors[f"{base}scales"] = Shape(dtype="F16", shape=(columns // size, rows))
    write_header(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": {**AWQ, "group_size": size}, "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder

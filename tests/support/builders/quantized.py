"""Checkpoints in the layouts of other programs, with random codes: the shapes of a checkpoint in 16
bit, the layers of its language half quantized."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from stages.models.hub.headers import Header
from stages.models.shards.layout import DTYPE_NAMES
from stages.models.stored.layouts import StoredLayer, recognized

GROUP = 128
"""Columns that share a scale."""
SPREAD = 0.02
"""Standard deviation of the weights, about."""

Tensors = dict[str, torch.Tensor]


def words(*shape: int) -> torch.Tensor:
    """Random int32 words."""
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def scales(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Scales of uniform codes of 4 bit, whose spread is 4.6."""
    return ((0.5 + torch.rand(shape)) * SPREAD / 4.6).to(dtype)


def awq(rows: int, columns: int) -> Tensors:
    groups = columns // GROUP
    return {
        "qweight": words(columns, rows // 8),
        "qzeros": words(groups, rows // 8),
        "scales": scales(torch.float16, groups, rows),
    }


def w4a16(rows: int, columns: int) -> Tensors:
    return {
        "weight_packed": words(rows, columns // 8),
        "weight_scale": scales(torch.bfloat16, rows, columns // GROUP),
        "weight_shape": torch.tensor([rows, columns]),
    }


def fp8(rows: int, columns: int) -> Tensors:
    weight = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    return {"weight": weight, "weight_scale": torch.full((rows, 1), SPREAD).bfloat16()}


def _compressed(form: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


LAYOUTS: dict[str, tuple[Callable[[int, int], Tensors], dict[str, Any]]] = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    "w4a16": (w4a16, _compressed("pack-quantized", num_bits=4, group_size=GROUP)),
    "fp8": (fp8, _compressed("float-quantized", num_bits=8, type="float", strategy="channel")),
}
"""Name of a layout → its tensors of a layer, and `quantization_config`."""


def one_layer(layout: str, shape: tuple[int, int]) -> tuple[StoredLayer, Tensors]:
    """Return a layer of these rows and columns, and its tensors."""
    make, settings = LAYOUTS[layout]
    tensors = make(*shape)
    headers = [
        Header(f"m.{name}", "", DTYPE_NAMES[part.dtype], tuple(part.shape), part.nbytes)
        for name, part in tensors.items()
    ]
    return recognized(headers, settings)["m.weight"], tensors


def is_quantized(name: str) -> bool:
    """Whether programs quantize a weight of this name: layers of the language model."""
    vision = any(word in name for word in ("visual", "vision", "projector", "merger"))
    return ".layers." in name and name.endswith("proj.weight") and not vision


def quantized(model: Path, layout: str) -> Path:
    """Return the folder of a checkpoint in this layout, which is made unless it is there."""
    folder = model.with_name(f"{model.name}-{layout}")
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    make, settings = LAYOUTS[layout]
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
    places: dict[str, str] = {}
    for path in sorted(model.glob("*.safetensors")):
        held: Tensors = {}
        for name, weight in load_file(path).items():
            if not is_quantized(name):
                held[name] = weight
                continue
            base = name.removesuffix("weight")
            held |= {base + local: part for local, part in make(*weight.shape).items()}
        save_file(held, folder / path.name, metadata={"format": "pt"})
        places |= dict.fromkeys(held, path.name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder

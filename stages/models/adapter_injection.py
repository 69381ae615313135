"""Injects an adapter into a loaded half by PEFT.

The half keeps its class, split strategy, engines and quantization. PEFT's layers replace the
adapted ones and call them. The adapter's weights are kept and multiplied in 32 bit, as PEFT does by
default, whatever type the half computes in.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.adapter_modules import MERGE_FIRST, LoraAdapter, read_adapter
from stages.models.protocols import Half, module_of

NAME = "default"
"""Name of the only adapter in PEFT's layers."""
GROUP_BYTES = 32 << 20
"""Adapter bytes after which the tensors read so far are put into the half."""


def adapted(half: Half, folder: Path, modules: Mapping[str, str]) -> Half:
    """Return the half with an adapter in it. `modules` maps each path in the adapter to that of the
    module. Raises UsageError for values that are not finite, EnvironmentFault if PEFT leaves
    something out."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import cast_adapter_dtype

    adapter = read_adapter(folder)
    ranks = {modules[path]: adapter.places[of.a].shape[0] for path, of in adapter.low_rank.items()}
    (usual_rank, _), *_ = Counter(ranks.values()).most_common(1)
    config = LoraConfig(
        r=usual_rank,
        target_modules=list(ranks),
        rank_pattern={re.escape(path): rank for path, rank in ranks.items() if rank != usual_rank},
        lora_dropout=0.0,
        init_lora_weights=False,
    )
    inject_adapter_in_model(config, module_of(half), NAME)
    # Cast before the values are set; otherwise they would be rounded to the half's dtype.
    cast_adapter_dtype(module_of(half), NAME)
    missing = {name for name, _ in half.named_parameters() if ".lora_" in name}
    for tensors in _in_groups(adapter, modules):
        result: Any = set_peft_model_state_dict(half, tensors, NAME)
        missing ^= {f"{name.removesuffix('.weight')}.{NAME}.weight" for name in tensors}
        missing |= {*result.unexpected_keys}
    if missing:
        raise EnvironmentFault(
            f"PEFT finds no place for {len(missing)} tensors of {folder}, such as {min(missing)}",
            hint=MERGE_FIRST,
        )
    for path, of in adapter.low_rank.items():
        layer: Any = half.get_submodule(modules[path])
        layer.scaling[NAME] = of.scale
    return half.requires_grad_(False).eval()


def _in_groups(
    adapter: LoraAdapter, modules: Mapping[str, str]
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the tensors of an adapter by their names in the half, a few layers at a time, so that
    they are never all in memory twice."""
    group: dict[str, torch.Tensor] = {}
    for path, of in adapter.low_rank.items():
        for side, name in (("A", of.a), ("B", of.b)):
            group[f"{modules[path]}.lora_{side}.weight"] = read_matrix(adapter, name)
        if sum(matrix.nbytes for matrix in group.values()) > GROUP_BYTES:
            yield group
            group = {}
    if group:
        yield group


def adapted_modules(half: Half) -> int:
    """Return how many layers of a half have an adapter."""
    return sum(hasattr(module, "lora_A") for module in half.modules())


def read_matrix(adapter: LoraAdapter, name: str) -> torch.Tensor:
    """Return a tensor of an adapter in 32 bit. Raises UsageError if it contains values that are not
    finite."""
    with safe_open(adapter.weights, "pt", backend="pread") as file:
        matrix: torch.Tensor = file.get_tensor(name)
    if not matrix.isfinite().all():
        raise UsageError(
            f"tensor {name} of {adapter.weights} contains values that are not finite",
            hint="Its training went wrong: use an earlier checkpoint of it",
        )
    return matrix.float()

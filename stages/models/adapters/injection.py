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
from stages.models.adapters.reading import MERGE_FIRST, LoraAdapter, read_adapter

NAME = "default"
"""Name that PEFT's layers have for their only adapter."""
GROUP_BYTES = 32 << 20
"""Bytes of an adapter beyond which those that were read are put into the half."""


def adapted(half: Any, folder: Path, modules: Mapping[str, str]) -> Any:
    """Return the half with an adapter in it. `modules` has for each path in the adapter that of the
    module. Raises UsageError for numbers that are none, EnvironmentFault when PEFT leaves
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
    inject_adapter_in_model(config, half, NAME)
    # Before they are filled, or they would be rounded to what the half computes in.
    cast_adapter_dtype(half, NAME)
    left = {name for name, _ in half.named_parameters() if ".lora_" in name}
    for tensors in _in_groups(adapter, modules):
        result: Any = set_peft_model_state_dict(half, tensors, NAME)
        left ^= {f"{name.removesuffix('.weight')}.{NAME}.weight" for name in tensors}
        left |= {*result.unexpected_keys}
    if left:
        raise EnvironmentFault(
            f"PEFT finds no place for {len(left)} tensors of {folder}, such as {min(left)}",
            hint=MERGE_FIRST,
        )
    for path, of in adapter.low_rank.items():
        half.get_submodule(modules[path]).scaling[NAME] = of.scale
    return half.requires_grad_(False).eval()


def _in_groups(
    adapter: LoraAdapter, modules: Mapping[str, str]
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the numbers of an adapter by their names in the half, some layers at a time: all of
    them would be there twice."""
    found: dict[str, torch.Tensor] = {}
    for path, of in adapter.low_rank.items():
        for side, name in (("A", of.a), ("B", of.b)):
            found[f"{modules[path]}.lora_{side}.weight"] = read_matrix(adapter, name)
        if sum(matrix.nbytes for matrix in found.values()) > GROUP_BYTES:
            yield found
            found = {}
    if found:
        yield found


def adapted_modules(half: Any) -> int:
    """Return how many layers of a half an adapter changes."""
    return sum(hasattr(module, "lora_A") for module in half.modules())


def read_matrix(adapter: LoraAdapter, name: str) -> torch.Tensor:
    """Return a tensor of an adapter in 32 bit. Raises UsageError where it holds what is no
    number."""
    with safe_open(adapter.weights, "pt", backend="pread") as file:
        found: torch.Tensor = file.get_tensor(name)
    if not found.isfinite().all():
        raise UsageError(
            f"tensor {name} of {adapter.weights} holds what is no number",
            hint="Its training went wrong: take an earlier one",
        )
    return found.float()

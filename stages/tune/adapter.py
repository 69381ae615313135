"""Adds a LoRA to a language half, and writes it in PEFT's format.

The LoRA's layers are inserted in place into the linear layers of the half, so the half keeps its
class and its split strategy. The adapter's weights are in 32 bit, whatever type the half has.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from artifacts.disk.files import whole_file
from artifacts.errors import UsageError
from stages.models.adapter_modules import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE, PREFIX
from stages.models.protocols import Half, module_of
from stages.models.published import as_published_metadata
from stages.models.stored.packed_linear import PackedLinear
from stages.tune.layout import AdapterLayout, most_common, new_layout

NAME = "default"
"""PEFT's name for an unnamed adapter."""


def add_adapter(
    half: Half, rank: int, seed: int, layout: AdapterLayout | None = None
) -> list[nn.Parameter]:
    """Insert a new adapter with a `layout`, by default for all linear layers, and return its
    parameters. Until it is trained, the output stays the same. Raises UsageError for a half without
    such layers."""
    from peft import inject_adapter_in_model

    targets = sorted(linear_paths(half))
    if not targets:
        raise UsageError(
            f"{type(half).__name__} has no linear layers in its language half",
            hint="Choose another model: docs/tune.md",
        )
    layout = layout or new_layout(targets, rank)
    if unknown := sorted(layout.ranks.keys() - set(targets)):
        raise UsageError(
            f"the adapter changes {unknown[0]}, which is not a linear layer of the language half "
            f"of {type(half).__name__}",
            hint="Use the model that it was trained on, or another --out",
        )
    config = _config_of(layout)
    half.requires_grad_(False)
    torch.manual_seed(seed)
    inject_adapter_in_model(config, module_of(half), adapter_name=NAME)
    half.peft_config = {NAME: config}
    trained = [p for n, p in half.named_parameters() if ".lora_" in n]
    for parameter in trained:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return trained


def _config_of(layout: AdapterLayout) -> Any:
    from peft import LoraConfig

    rank, alpha = layout.rank, most_common(layout.alphas.values())
    alphas = {path: _plain(value) for path, value in layout.alphas.items() if value != alpha}
    return LoraConfig(
        r=rank,
        lora_alpha=_plain(alpha),
        target_modules=sorted(layout.ranks),
        rank_pattern={re.escape(p): r for p, r in layout.ranks.items() if r != rank},
        alpha_pattern={re.escape(path): value for path, value in alphas.items()},
        task_type="CAUSAL_LM",
        inference_mode=False,
    )


def _plain(number: float) -> Any:
    """Return whole numbers as int."""
    return int(number) if number == int(number) else number


def load_adapter_weights(half: Half, folder: Path) -> None:
    """Load the weights of a stored adapter into a half's new adapter. Raises UsageError for other
    shapes."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        numbers = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"no adapter to resume from in {folder}", hint="Omit --resume, or check the path"
        ) from error
    own = numbers_of(half)
    if {n: v.shape for n, v in own.items()} != {n: v.shape for n, v in numbers.items()}:
        raise UsageError(
            f"the adapter in {folder} has other shapes than the layers of this model",
            hint="Use the model that it was trained on, or another --out",
        )
    bare = {name.removeprefix(PREFIX): value for name, value in numbers.items()}
    set_peft_model_state_dict(half, bare, adapter_name=NAME)


def linear_paths(half: Half) -> Iterator[str]:
    """Yield the paths of the linear layers of the text decoder, without the output head."""
    head, decoder = half.get_output_embeddings(), half.get_decoder()
    within = {id(module) for module in decoder.modules()}
    for path, module in half.named_modules():
        if _is_linear(module) and module is not head and id(module) in within:
            yield path


def _is_linear(module: nn.Module) -> bool:
    """Return whether a layer is a plain linear layer or a quantized one. A model's own subclass,
    such as a router, may return more than the product."""
    kind = type(module)
    return kind in (nn.Linear, PackedLinear) or (
        isinstance(module, nn.Linear) and kind.__module__.startswith("bitsandbytes.")
    )


def numbers_of(half: Half) -> dict[str, torch.Tensor]:
    """Return the adapter's weights, by PEFT's names in a file."""
    from peft import get_peft_model_state_dict

    weights: Mapping[str, torch.Tensor] = get_peft_model_state_dict(half, adapter_name=NAME)
    return {
        f"{PREFIX}{name}": value.detach().cpu().contiguous()
        for name, value in sorted(weights.items())
    }


def write_adapter(
    half: Half, folder: Path, model: str, as_published: bool = False, base: str = ""
) -> None:
    """Write an adapter into a folder, with `as_published` if its model family changed, and with the
    digest of its `base` if that is known. Raises EnvironmentFault."""
    from safetensors.torch import save

    metadata = {"format": "pt", **as_published_metadata(Path(model), as_published)}
    if base:
        metadata[BASE] = base
    config = half.peft_config[NAME].to_dict()
    config["base_model_name_or_path"] = model
    config["inference_mode"] = True
    numbers = numbers_of(half)
    # Full paths, although PEFT shortens them: in the whole model, a short name may match a layer of
    # the vision encoder, which PEFT would then adapt, too.
    paths = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in numbers}
    config["target_modules"] = paths
    fields = {name: sorted(v) if isinstance(v, set) else v for name, v in sorted(config.items())}
    content = memoryview(save(numbers, metadata=metadata))
    end = 8 + int.from_bytes(content[:8], "little")
    # safetensors writes several fields of metadata in another order each time.
    header = {**json.loads(bytes(content[8:end])), "__metadata__": metadata}
    ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    with whole_file(folder / ADAPTER_WEIGHTS) as file:
        file.write(content[:8])
        file.write(ordered.ljust(end - 8))
        file.write(content[end:])
    with whole_file(folder / ADAPTER_CONFIG) as file:
        file.write((json.dumps(fields, indent=2, default=str) + "\n").encode())

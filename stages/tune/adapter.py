"""Puts a LoRA beside the linear layers of a language half, and writes it as PEFT does. Knows no
family and no data.

The layers go into the half in place, so that it stays of its own class and every route to it is as
it was. The adapter's own numbers are in 32 bit, whatever those of the half are in.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from artifacts.errors import UsageError
from artifacts.files import whole_file
from stages.models.adapters.reading import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX

NAME = "default"
"""What PEFT calls an adapter that has no name."""
SCALE = 2
"""An adapter's product is added this often (alpha is so many times the rank)."""


def add_adapter(half: Any, rank: int, seed: int) -> list[nn.Parameter]:
    """Put a new adapter into a half, which says the same with it until it is trained. Returns what
    is to be trained. Raises UsageError for a half without linear layers."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = sorted(linear_paths(half))
    if not targets:
        raise UsageError(
            f"{type(half).__name__} has no linear layers in its language half",
            hint="Choose another model: docs/tune.md",
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=SCALE * rank,
        target_modules=shortened(targets, half),
        task_type="CAUSAL_LM",
        inference_mode=False,
    )
    half.requires_grad_(False)
    torch.manual_seed(seed)
    inject_adapter_in_model(config, half, adapter_name=NAME)
    half.peft_config = {NAME: config}
    trained = [p for n, p in half.named_parameters() if ".lora_" in n]
    for parameter in trained:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return trained


def begin_with(half: Any, folder: Path) -> None:
    """Give a half's new adapter the numbers of one that was written. Raises UsageError for one of
    another shape."""
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        numbers = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"there is no adapter in {folder} to go on from",
            hint="Leave --resume out, or check the path",
        ) from error
    own = numbers_of(half)
    if {n: v.shape for n, v in own.items()} != {n: v.shape for n, v in numbers.items()}:
        raise UsageError(
            f"the adapter in {folder} is of another shape than this training's",
            hint="Give the --lora-rank that it has (adapter_config.json: r), or another --out",
        )
    bare = {name.removeprefix(PREFIX): value for name, value in numbers.items()}
    set_peft_model_state_dict(half, bare, adapter_name=NAME)


def linear_paths(half: Any) -> Iterator[str]:
    """Yield the paths of the linear layers that read text, but of the one that makes words."""
    head, decoder = half.get_output_embeddings(), half.get_decoder()
    within = {id(module) for module in decoder.modules()}
    for path, module in half.named_modules():
        if _is_linear(module) and module is not head and id(module) in within:
            yield path


def _is_linear(module: nn.Module) -> bool:
    """Return whether a layer is a plain product, or one in few bits. A subclass of a model's own,
    such as a router's, may give more than that."""
    kind = type(module)
    return kind is nn.Linear or (
        isinstance(module, nn.Linear) and kind.__module__.startswith("bitsandbytes.")
    )


def shortened(paths: list[str], half: Any) -> list[str]:
    """Return the last parts of these paths where no other linear layer has the same: so an adapter
    says what most others do."""
    names = {path.rpartition(".")[2] for path in paths}
    others = {
        path.rpartition(".")[2]
        for path, module in half.named_modules()
        if isinstance(module, nn.Linear) and path not in paths
    }
    return sorted(names) if not names & others else paths


def numbers_of(half: Any) -> dict[str, torch.Tensor]:
    """Return the adapter's numbers, by the names that PEFT gives them in a file."""
    from peft import get_peft_model_state_dict

    found: Mapping[str, torch.Tensor] = get_peft_model_state_dict(half, adapter_name=NAME)
    return {
        f"{PREFIX}{name}": value.detach().cpu().contiguous()
        for name, value in sorted(found.items())
    }


def write_adapter(half: Any, folder: Path, model: str) -> None:
    """Write an adapter into a folder. Raises EnvironmentFault."""
    from safetensors.torch import save

    config = half.peft_config[NAME].to_dict()
    config["base_model_name_or_path"] = model
    config["inference_mode"] = True
    told = {name: sorted(v) if isinstance(v, set) else v for name, v in sorted(config.items())}
    with whole_file(folder / ADAPTER_WEIGHTS) as file:
        file.write(save(numbers_of(half), metadata={"format": "pt"}))
    with whole_file(folder / ADAPTER_CONFIG) as file:
        file.write((json.dumps(told, indent=2, default=str) + "\n").encode())

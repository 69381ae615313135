"""Adds a LoRA to a language half, writes it in PEFT's format, and saves the progress of its
training.

The LoRA's layers are inserted in place into the linear layers of the half, so the half keeps its
class and its split strategy. The adapter's weights are in 32 bit, whatever type the half has.

From the saved progress an interrupted training resumes with the same numbers. A checkpoint is one
file: the trained weights, the optimizer's state of each, and the progress. The order of examples
follows from the seed, so it is not stored.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from artifacts.digests import digest_of
from artifacts.disk.files import whole_file
from artifacts.errors import UsageError
from stages.models.adapter_modules import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE, PREFIX
from stages.models.published import as_published_metadata
from stages.models.stored.codes import PackedLinear
from stages.tune import CHECKPOINT, AdapterLayout, most_common, new_layout

BEST = "best"
"""Suffix of the best trained weights, next to the state of the optimizer."""


@dataclass(kw_only=True, slots=True)
class TrainingProgress:
    """The progress of a training."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Mean loss per token of each step."""
    scores: list[dict[str, Any]] = field(default_factory=list)
    """Scores of the adapter, with their steps."""
    memory: list[int] = field(default_factory=list)
    """Bytes of process memory after each step."""
    held_out: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean loss per held-out token) after each epoch."""
    best: list[torch.Tensor] = field(default_factory=list)
    """The trained weights after the epoch with the lowest such loss."""

    @property
    def best_step(self) -> int:
        """Return the step of the lowest held-out loss; 0 without held-out examples."""
        return min(self.held_out, key=lambda each: each[1], default=(0, 0.0))[0]

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "losses": self.losses,
            "memory": self.memory,
            "scores": self.scores,
            "held_out": self.held_out,
        }


def save_checkpoint(
    folder: Path,
    recipe: Mapping[str, Any],
    progress: TrainingProgress,
    trained: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint in place of the previous one. Raises EnvironmentFault."""
    from safetensors.torch import save

    numbers: dict[str, torch.Tensor] = {}
    for at, parameter in enumerate(trained):
        numbers[f"{at}.value"] = parameter
        for name, value in optimizer.state.get(parameter, {}).items():
            numbers[f"{at}.{name}"] = torch.as_tensor(value)
    numbers |= {f"{at}.{BEST}": value for at, value in enumerate(progress.best)}
    metadata = {
        "recipe": digest_of(dict(recipe)),
        "optimizer": type(optimizer).__name__,
        "progress": json.dumps(progress.to_json()),
    }
    with whole_file(folder / CHECKPOINT) as file:
        # 8-bit moments share their quantization table.
        file.write(save(_apart(numbers), metadata=metadata))


def resume(
    folder: Path,
    recipe: Mapping[str, Any],
    trained: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> TrainingProgress | None:
    """Restore a checkpoint and return its progress; None if there is none with this recipe. Another
    kind of optimizer starts with new moments."""
    from safetensors import safe_open

    try:
        with safe_open(folder / CHECKPOINT, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("recipe") != digest_of(dict(recipe)):
                return None
            numbers = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    for at, parameter in enumerate(trained):
        with torch.no_grad():
            parameter.copy_(numbers.pop(f"{at}.value"))
    found = json.loads(metadata["progress"])
    found["held_out"] = [(step, loss) for step, loss in found["held_out"]]
    best = [numbers.pop(f"{at}.{BEST}", None) for at in range(len(trained))]
    kept = numbers if metadata.get("optimizer") == type(optimizer).__name__ else {}
    for name, value in kept.items():
        at, _, what = name.partition(".")
        parameter = trained[int(at)]
        on = value if what == "step" else value.to(parameter.device)
        optimizer.state[parameter][what] = on
    return TrainingProgress(**found, best=[value for value in best if value is not None])


NAME = "default"
"""PEFT's name for an unnamed adapter."""


def add_adapter(
    half: Any, rank: int, seed: int, layout: AdapterLayout | None = None
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
    inject_adapter_in_model(config, half, adapter_name=NAME)
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


def load_adapter_weights(half: Any, folder: Path) -> None:
    """Load the weights of a stored adapter into a half's new adapter. Raises UsageError for other
    shapes."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        numbers = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"no adapter to resume from in {folder}",
            hint="Omit --resume, or check the path",
        ) from error
    own = numbers_of(half)
    if {n: v.shape for n, v in own.items()} != {n: v.shape for n, v in numbers.items()}:
        raise UsageError(
            f"the adapter in {folder} has other shapes than the layers of this model",
            hint="Use the model that it was trained on, or another --out",
        )
    bare = {name.removeprefix(PREFIX): value for name, value in numbers.items()}
    set_peft_model_state_dict(half, bare, adapter_name=NAME)


def linear_paths(half: Any) -> Iterator[str]:
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


def numbers_of(half: Any) -> dict[str, torch.Tensor]:
    """Return the adapter's weights, by PEFT's names in a file."""
    from peft import get_peft_model_state_dict

    found: Mapping[str, torch.Tensor] = get_peft_model_state_dict(half, adapter_name=NAME)
    return {
        f"{PREFIX}{name}": value.detach().cpu().contiguous()
        for name, value in sorted(found.items())
    }


def write_adapter(
    half: Any, folder: Path, model: str, as_published: bool = False, base: str = ""
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


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors on the CPU, each with its own storage, as the file format requires."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        apart[name] = here.clone() if here.untyped_storage().data_ptr() in seen else here
        seen.add(here.untyped_storage().data_ptr())
    return apart

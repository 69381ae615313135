"""Saves the progress of a training, and resumes an interrupted one with the same numbers.

A checkpoint is one file: the trained weights, the optimizer's state of each, and the progress. The
order of examples follows from the seed, so it is not stored.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from artifacts.digests import digest_of
from artifacts.disk.files import whole_file
from artifacts.disk.json_shapes import Json
from stages.tune import CHECKPOINT

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
        return min(self.held_out, key=lambda pair: pair[1], default=(0, 0.0))[0]

    def to_json(self) -> dict[str, Json]:
        return {
            "step": self.step,
            "losses": self.losses,
            "memory": self.memory,
            "scores": self.scores,
            "held_out": self.held_out,
        }


def save_checkpoint(
    folder: Path,
    recipe: Mapping[str, Json],
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
    recipe: Mapping[str, Json],
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
    progress = json.loads(metadata["progress"])
    progress["held_out"] = [(step, loss) for step, loss in progress["held_out"]]
    best = [numbers.pop(f"{at}.{BEST}", None) for at in range(len(trained))]
    kept = numbers if metadata.get("optimizer") == type(optimizer).__name__ else {}
    for name, value in kept.items():
        at, _, what = name.partition(".")
        parameter = trained[int(at)]
        on = value if what == "step" else value.to(parameter.device)
        optimizer.state[parameter][what] = on
    return TrainingProgress(**progress, best=[value for value in best if value is not None])


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors on the CPU, each with its own storage, as the file format requires."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        apart[name] = here.clone() if here.untyped_storage().data_ptr() in seen else here
        seen.add(here.untyped_storage().data_ptr())
    return apart

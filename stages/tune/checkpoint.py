"""Keeps how far a training is, so that one that dies goes on to the same numbers. Knows no model.

A checkpoint is one file: the trained numbers, what the optimizer keeps of each, and how far it is.
The order of the examples follows from the seed, so nothing of it is kept.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from artifacts.files import whole_file
from artifacts.keys import digest_of

FILE = "checkpoint.safetensors"


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a training is."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Mean loss of a token, of each step."""
    scores: list[dict[str, Any]] = field(default_factory=list)
    """What the adapter scored, and after which step."""


def keep(
    folder: Path,
    recipe: Mapping[str, Any],
    progress: Progress,
    trained: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint in place of the one before. Raises EnvironmentFault."""
    from safetensors.torch import save

    numbers: dict[str, torch.Tensor] = {}
    for at, parameter in enumerate(trained):
        numbers[f"{at}.value"] = parameter.detach().cpu().contiguous()
        for name, value in optimizer.state.get(parameter, {}).items():
            kept = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            numbers[f"{at}.{name}"] = kept.detach().cpu().contiguous()
    told = {"step": progress.step, "losses": progress.losses, "scores": progress.scores}
    metadata = {"recipe": digest_of(dict(recipe)), "progress": json.dumps(told)}
    with whole_file(folder / FILE) as file:
        file.write(save(numbers, metadata=metadata))


def go_on(
    folder: Path,
    recipe: Mapping[str, Any],
    trained: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> Progress:
    """Put a checkpoint's numbers where they were, and return how far it is; nothing, where there is
    none of this recipe."""
    from safetensors import safe_open

    try:
        with safe_open(folder / FILE, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("recipe") != digest_of(dict(recipe)):
                return Progress()
            numbers = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return Progress()
    for at, parameter in enumerate(trained):
        with torch.no_grad():
            parameter.copy_(numbers.pop(f"{at}.value"))
    for name, value in numbers.items():
        at, _, what = name.partition(".")
        parameter = trained[int(at)]
        on = value if what == "step" else value.to(parameter.device)
        optimizer.state[parameter][what] = on
    return Progress(**json.loads(metadata["progress"]))

"""Adapters as PEFT writes them, with random matrices, and checkpoints that they are merged into."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from penstock_demo import CHECKPOINT
from stages.export import MergeJob
from stages.export.merge import run
from stages.models.halves.model_class import config_and_class
from stages.models.profile import ModelProfile
from stages.process.job import job_fields
from tests.support.families import checkpoint
from tests.support.waves import told_by

PREFIX = "base_model.model."
RANK, ALPHA = 4, 8.0
SMALL_SHARDS = 1 << 18


def settings(**changes: Any) -> dict[str, Any]:
    """What adapter_config.json says of a plain LoRA."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somebody/model",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "target_modules": ["q_proj"],
        **changes,
    }


def matrices(
    shapes: Mapping[str, tuple[int, ...]],
    ranks: Mapping[str, int] | None = None,
    strength: float = 0.1,
) -> dict[str, torch.Tensor]:
    """A and B of each module, by rows and columns of what they add."""
    draw = torch.Generator().manual_seed(7)
    found = {}
    for path, (rows, columns) in shapes.items():
        rank = (ranks or {}).get(path, RANK)
        for side, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            name = f"{PREFIX}{path}.lora_{side}.weight"
            found[name] = torch.randn(shape, generator=draw) * strength
    return found


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], **changes: Any) -> Path:
    """An adapter of these tensors, whose settings are the plain ones but for `changes`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings(**changes)))
    save_file(dict(tensors), folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def merged(source: Path, adapter: Path, folder: Path, **changes: Any) -> Path:
    job = MergeJob(
        model=str(source),
        adapter=str(adapter),
        recipe={"adapter": adapter.name},
        folder=str(folder),
        **{"shard_bytes": SMALL_SHARDS, **changes},
    )
    told_by(run, job_fields(job))
    return folder


def source_of(name: str) -> Path:
    return CHECKPOINT if name == "demo" else checkpoint(name)


def loaded(folder: Path) -> Any:
    _, cls = config_and_class(folder, False)
    model: Any = cls.from_pretrained(folder, dtype="auto")
    return model.eval()


def linears_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Every linear layer by its path, but the one that the demo shares with its words."""
    found = {path: m.weight.shape for path, m in model.named_modules() if type(m) is nn.Linear}
    return {path: tuple(shape) for path, shape in found.items() if path != "lm_head"}


def adapter_of(
    folder: Path, profile: ModelProfile, strength: float = 0.2, *, zero: bool = False
) -> Path:
    """An adapter of all layers of a model's language half but its head; one of `zero` B adds
    nothing, as before a training."""
    layers = [layer for layer in profile.language.adaptable if not layer.path.endswith("lm_head")]
    tensors = matrices({a.path: (a.rows, a.columns) for a in layers}, strength=strength)
    for name in [name for name in tensors if zero and ".lora_B" in name]:
        tensors[name] = torch.zeros_like(tensors[name])
    return write_adapter(folder, tensors)

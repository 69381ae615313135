"""An adapter that cannot be merged is refused in one line."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from artifacts.errors import EnvironmentFault, UsageError
from penstock_demo import CHECKPOINT
from tests.support.adapters import PREFIX, loaded, matrices, merged, settings, write_adapter
from tests.support.families import checkpoint
from tests.support.pickled import tensors_of
from tests.support.tiny_families import FAMILIES

Q_PROJ = "model.language_model.layers.0.self_attn.q_proj"


def told_otherwise(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(settings(**changes)))

    return write


def holding(tensors: dict[str, torch.Tensor]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})

    return write


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def torn(folder: Path) -> None:
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(300)


def above(folder: Path) -> None:
    """The folder of a training, whose last checkpoint is the adapter."""
    (folder / "checkpoint-9").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).rename(folder / "checkpoint-9" / name)


def no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


LAYER = (32, 32)
Refused = dict[str, tuple[Callable[[Path], Any], str]]
USAGE: Refused = {
    "no settings": (without("adapter_config.json"), "has no adapter_config.json"),
    "one above": (above, "Give .*checkpoint-9"),
    "no weights": (without("adapter_model.safetensors"), "has no adapter_model.safet"),
    "pickle": (pickled, "adapter_model.bin, a pickle, which can run code"),
    "ia3": (told_otherwise(peft_type="IA3"), "of type IA3; only LORA is supported"),
    "dora": (told_otherwise(use_dora=True), "uses DoRA"),
    "bias": (told_otherwise(bias="all"), "trained biases"),
    "pissa": (told_otherwise(init_lora_weights="pissa_niter_4"), "own weights before"),
    "parameters": (told_otherwise(target_parameters=["x"]), "target_parameters"),
    "no r": (told_otherwise(r=None), "no valid r"),
    "no alpha": (told_otherwise(lora_alpha="much"), "no valid lora_alpha"),
    "pattern": (told_otherwise(rank_pattern={"(": 1}), "rank_pattern cannot be matched"),
    "nothing": (holding({}), "contains no tensors"),
    "convolution": (
        holding({f"{PREFIX}p.lora_{side}.weight": torch.ones(4, 4, 1, 1) for side in "AB"}),
        "convolution",
    ),
    "magnitudes": (
        holding({f"{PREFIX}{Q_PROJ}.lora_magnitude_vector.weight": torch.ones(32)}),
        "lora_magnitude_vector",
    ),
    "another model": (
        holding(matrices({"model.layers.99.q_proj": LAYER})),
        "changes model.layers.99.q_proj.weight, which .* (has not|does not have).*somebody/model",
    ),
    "another shape": (
        holding(matrices({Q_PROJ: (64, 32)})),
        f"changes {Q_PROJ} of 64 x 32, which is 32 x 32 in",
    ),
    "twice": (holding(matrices({Q_PROJ: LAYER, Q_PROJ.removeprefix("model."): LAYER})), "twice"),
    "no number": (
        holding(matrices({Q_PROJ: LAYER}, strength=math.inf)),
        "that are not finite",
    ),
    "too large": (
        holding(matrices({Q_PROJ: LAYER}, strength=1e19)),
        "infinite or NaN in torch.float32",
    ),
}
DAMAGED: Refused = {
    "no json": (no_json, "cannot be read as JSON"),
    "torn": (torn, "is not a whole safetensors file"),
    "rank": (told_otherwise(r=8), "has ranks 4 and 4 .* says 8"),
    "not saved": (told_otherwise(modules_to_save=["lm_head"]), "lacks lm_head"),
    "half": (holding({f"{PREFIX}{Q_PROJ}.lora_A.weight": torch.ones(4, 32)}), "lacks A or B of"),
}


@pytest.mark.parametrize("why", [*USAGE, *DAMAGED])
def test_one_that_cannot_be_merged_is_refused_in_one_line(tmp_path: Path, why: str) -> None:
    change, match = {**USAGE, **DAMAGED}[why]
    kind = UsageError if why in USAGE else EnvironmentFault
    adapter = write_adapter(tmp_path / "adapter", matrices({Q_PROJ: (32, 32)}))
    change(adapter)
    with pytest.raises(kind, match=match) as caught:
        merged(checkpoint("llava"), adapter, tmp_path / "made")
    assert type(caught.value) is kind
    assert caught.value.hint and "\n" not in str(caught.value)
    assert not (tmp_path / "made" / "config.json").exists()


def test_weights_that_two_layers_share_are_left_alone(tmp_path: Path) -> None:
    words = loaded(CHECKPOINT).get_input_embeddings().weight
    for name in ("lm_head", "model.language_model.embed_tokens"):
        adapter = write_adapter(tmp_path / name, {f"{PREFIX}{name}.weight": words.detach()})
        with pytest.raises(UsageError, match="shares its weights with"):
            merged(CHECKPOINT, adapter, tmp_path / "made")


def test_what_the_loader_puts_together_is_not_merged_into(tmp_path: Path) -> None:
    model = FAMILIES["glm4v_moe"]()[0]
    model.save_pretrained(tmp_path / "source")
    name, fused = next((n, p) for n, p in model.named_parameters() if "experts.gate_up" in n)
    assert name not in tensors_of(tmp_path / "source")
    adapter = write_adapter(tmp_path / "adapter", {PREFIX + name: fused.detach()})
    with pytest.raises(UsageError, match="in another form than the model uses"):
        merged(tmp_path / "source", adapter, tmp_path / "made")

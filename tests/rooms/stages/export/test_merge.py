"""An adapter is merged into the weights of a checkpoint as PEFT merges it into a model, or refused
in one line."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from artifacts.errors import EnvironmentFault, UsageError
from penstock_demo import CHECKPOINT
from stages.export.merge import _is_transposed
from stages.models.adapter_modules import read_adapter
from tests.support.adapters import (
    ALPHA,
    PREFIX,
    RANK,
    linears_of,
    loaded,
    matrices,
    merged,
    settings,
    source_of,
    write_adapter,
)
from tests.support.families import checkpoint
from tests.support.pickled import bytes_of, tensors_of
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
    os.truncate(folder / "adapter_model.safetensors", 300)


def above(folder: Path) -> None:
    """The folder of a training, whose last checkpoint is the adapter."""
    (folder / "checkpoint-9").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).rename(folder / "checkpoint-9" / name)


def no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


LAYER, VECTOR = (32, 32), "lora_magnitude_vector"
HUGE = "infinite or NaN in torch.float32"
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
    "magnitudes": (holding({f"{PREFIX}{Q_PROJ}.{VECTOR}.weight": torch.ones(32)}), VECTOR),
    "another model": (
        holding(matrices({"model.layers.99.q_proj": LAYER})),
        "changes model.layers.99.q_proj.weight, which .* (has not|does not have).*somebody/model",
    ),
    "another shape": (
        holding(matrices({Q_PROJ: (64, 32)})),
        f"changes {Q_PROJ} of 64 x 32, which is 32 x 32 in",
    ),
    "twice": (holding(matrices({Q_PROJ: LAYER, Q_PROJ.removeprefix("model."): LAYER})), "twice"),
    "no number": (holding(matrices({Q_PROJ: LAYER}, strength=math.inf)), "that are not finite"),
    "too large": (holding(matrices({Q_PROJ: LAYER}, strength=1e19)), HUGE),
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


def add_by_hand(
    model: Any, tensors: dict[str, torch.Tensor], scale: Callable[[str], float]
) -> None:
    with torch.no_grad():
        for name, a in tensors.items():
            path = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            if path.endswith("weight"):
                continue
            b = tensors[name.replace("lora_A", "lora_B")]
            weight = model.get_submodule(path).weight
            weight.copy_(weight.float() + b.float() @ a.float() * scale(path))


def assert_same(model: Any, other: Any, rtol: float = 0.0, atol: float = 0.0) -> None:
    found, expected = model.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=atol, msg=name)


def test_names_of_older_versions_are_found(tmp_path: Path) -> None:
    shapes = linears_of(loaded(checkpoint("llava")))
    tensors = matrices(shapes)
    files = tensors_of(checkpoint("llava"))
    now, then = "model.language_model.layers", "language_model.model.layers"
    older = {n.replace(now, then).replace("model.vision", "vision"): t for n, t in tensors.items()}
    assert older.keys() != tensors.keys() and any(f"{then}.0" in name for name in files)
    made = []
    for n, each in enumerate((tensors, older)):
        adapter = write_adapter(tmp_path / str(n) / "adapter", each)
        made.append(merged(checkpoint("llava"), adapter, tmp_path / str(n) / "made"))
    assert bytes_of(made[0]) == bytes_of(made[1])
    # The same model whose files have the names of now.
    again = shutil.copytree(checkpoint("llava"), tmp_path / "again")
    path = again / "model.safetensors"
    save_file({n.replace(then, now): t for n, t in load_file(path).items()}, path, {"format": "pt"})
    adapter = write_adapter(tmp_path / "older", older)
    assert_same(loaded(merged(again, adapter, tmp_path / "renamed")), loaded(made[0]))


def test_ranks_scales_and_whole_modules_are_of_each_layer(tmp_path: Path) -> None:
    source = checkpoint("llava")
    model = loaded(source)
    shapes = {path: shape for path, shape in linears_of(model).items() if "language" in path}
    ranks = {path: 2 for path in shapes if "layers.1.mlp" in path}
    assert ranks and len(ranks) < len(shapes)
    tensors = matrices(shapes, ranks)
    head = torch.full_like(model.lm_head.weight, 0.5)
    tensors[f"{PREFIX}lm_head.weight"] = head
    words = model.get_input_embeddings().weight
    a, b = torch.randn(RANK, len(words)), torch.randn(words.shape[1], RANK)
    for side, tensor in (("A", a), ("B", b)):
        tensors[f"{PREFIX}model.language_model.embed_tokens.lora_embedding_{side}"] = tensor
    adapter = write_adapter(
        tmp_path / "adapter",
        tensors,
        use_rslora=True,
        rank_pattern={r"layers\.1\.mlp\.\w+": 2},
        alpha_pattern={"k_proj": 3},
        modules_to_save=["lm_head"],
    )

    def scale(path: str) -> float:
        return (3 if path.endswith("k_proj") else ALPHA) / math.sqrt(ranks.get(path, RANK))

    add_by_hand(model, {n: t for n, t in tensors.items() if "lora_A" in n or "lora_B" in n}, scale)
    with torch.no_grad():
        model.lm_head.weight.copy_(head)
        words += (b @ a).T * scale("embed_tokens")
    assert_same(loaded(merged(source, adapter, tmp_path / "made")), model, 1e-6, 1e-6)


@pytest.mark.slow
def test_tensors_are_merged_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = matrices(linears_of(loaded(CHECKPOINT)))
    adapter = write_adapter(tmp_path / "adapter", tensors)
    whole = merged(CHECKPOINT, adapter, tmp_path / "whole")
    monkeypatch.setattr("stages.export.merge.CHUNK_BYTES", 1000)
    pieces = merged(CHECKPOINT, adapter, tmp_path / "pieces")
    # A sum of 32 bit may end in another bit, and fall on the other side of what is rounded.
    assert_same(loaded(pieces), loaded(whole), rtol=2**-7, atol=1e-6)
    with pytest.raises(UsageError, match="made from another source or with other settings"):
        merged(CHECKPOINT, adapter, whole, shard_bytes=1 << 30)


def test_matrices_of_experts_are_found_by_their_names_in_the_files(tmp_path: Path) -> None:
    model = FAMILIES["glm4v_moe"]()[0]
    model.save_pretrained(tmp_path / "source")
    stored = tensors_of(tmp_path / "source")
    name = next(n for n in stored if n.endswith("experts.1.gate_proj.weight"))
    path = name.removesuffix(".weight")
    tensors = matrices({path: tuple(stored[name].shape)})
    adapter = write_adapter(tmp_path / "adapter", tensors)
    made = tensors_of(merged(tmp_path / "source", adapter, tmp_path / "made"))
    a, b = tensors.values()
    torch.testing.assert_close(made.pop(name), stored.pop(name) + b @ a * 2)
    assert all(torch.equal(made[key], tensor) for key, tensor in stored.items())


def test_which_way_round_is_told_by_the_class_as_peft_has_it(tmp_path: Path) -> None:
    tensors = matrices({"transformer.h.0.attn.c_attn": (96, 32)})
    turned = read_adapter(write_adapter(tmp_path / "turned", tensors, fan_in_fan_out=True))
    plain = read_adapter(write_adapter(tmp_path / "plain", tensors))
    assert _is_transposed(Conv1D(96, 32), plain) and _is_transposed(None, turned)
    assert not _is_transposed(nn.Linear(32, 96), turned) and not _is_transposed(None, plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what is no dependency
@pytest.mark.parametrize("name", ["demo", "llava"])
def test_it_is_what_peft_merges(tmp_path: Path, name: str) -> None:
    peft = pytest.importorskip("peft")
    source = source_of(name)
    model = loaded(source)
    shapes, before = linears_of(model), {n: t.clone() for n, t in model.state_dict().items()}
    adapter = write_adapter(
        tmp_path / "adapter",
        matrices(shapes, {path: 2 for path in shapes if path.endswith("k_proj")}),
        use_rslora=True,
        rank_pattern={"k_proj": 2},
        alpha_pattern={r"layers\.1\.self_attn\.q_proj": 5},
        target_modules=sorted(shapes),
        base_model_name_or_path=str(source),
    )
    whole = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    made = merged(source, adapter, tmp_path / "made")
    assert_same(loaded(made), whole)
    changed = [n for n, t in whole.state_dict().items() if not torch.equal(t, before[n])]
    assert len(changed) == len(shapes) > 20
    types = {key: tensor.dtype for key, tensor in tensors_of(source).items()}
    assert {key: tensor.dtype for key, tensor in tensors_of(made).items()} == types
    assert (made / "config.json").read_bytes() == (source / "config.json").read_bytes()

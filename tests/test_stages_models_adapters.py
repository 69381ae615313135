"""What PEFT saves is put into a half, and computes there what it computes in PEFT's own hands."""

from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.errors import UsageError
from stages.models import load_half
from stages.models.adapters import injection
from stages.models.adapters.fitting import modules_of
from stages.models.adapters.injection import adapted_modules
from stages.models.adapters.reading import read_adapter
from stages.models.loading import ModelJob, facts
from tests.support.adapters import adapter_of, source_of
from tests.support.clips import profile_of

TARGETS = ("q_proj", "v_proj", "down_proj")
TWICE = "layers.1.self_attn.q_proj"
"""A layer of another rank."""


def saved_by_peft(source: Path, folder: Path) -> Any:
    """An adapter that PEFT made, as after some steps, and the model with it."""
    from peft import LoraConfig, get_peft_model

    half = load_half(source, "language", dtype=torch.float32)
    path = f"(.*language_model.*({'|'.join(TARGETS)}))"
    told: dict[str, Any] = {"r": 4, "lora_alpha": 6, "use_rslora": True}
    config = LoraConfig(target_modules=path, rank_pattern={TWICE: 8}, **told)
    model = get_peft_model(half, config)
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)
    model.save_pretrained(str(folder))
    return model.eval()


def with_adapter(source: Path, adapter: Path, **options: Any) -> Any:
    profile = profile_of(source)
    return ModelJob(
        model=str(source),
        route=profile.route,
        pieces=profile.language.pieces,
        adapter=str(adapter),
        adapted=modules_of(read_adapter(adapter), profile),
        **options,
    )


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["demo", pytest.param("llava", marks=pytest.mark.slow)])
def test_what_peft_saved_computes_what_it_computed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injection, "GROUP_BYTES", 1 << 12)  # some layers at a time
    source = source_of(name)
    theirs = saved_by_peft(source, tmp_path / "adapter")
    ours = (
        with_adapter(source, tmp_path / "adapter", dtype="float32")
        .load_reloadable("language")
        .model
    )
    ids = torch.arange(5, 17)[None]
    with torch.inference_mode():
        wanted, found = (m(input_ids=ids).logits for m in (theirs, ours))
        plain = load_half(source, "language", dtype=torch.float32)(input_ids=ids).logits
    assert torch.equal(found, wanted) and not torch.equal(found, plain)
    assert not any(weight.requires_grad for weight in ours.parameters()) and not ours.training
    assert type(ours).__mro__[1] is type(theirs.base_model.model).__mro__[1], "of its own class"


@pytest.mark.parametrize(
    "precision", ["nf4", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bf16", "int8"))]
)
def test_its_numbers_are_not_rounded_to_what_the_half_computes_in(
    tmp_path: Path, precision: str
) -> None:
    source = source_of("demo")
    adapter = adapter_of(tmp_path / "adapter", profile_of(source))
    half = with_adapter(source, adapter, dtype="bfloat16", precision=precision).load("language")
    layers = [module for module in half.modules() if hasattr(module, "lora_A")]
    assert len(layers) == adapted_modules(half) == 28
    assert {m.lora_B.default.weight.dtype for m in layers} == {torch.float32}
    told = facts(half)
    assert told["adapted_modules"] == 28 and told["linear_modules"] == 29


def test_an_offloaded_half_takes_none(tmp_path: Path) -> None:
    source = source_of("demo")
    adapter = adapter_of(tmp_path / "adapter", profile_of(source))
    with pytest.raises(UsageError, match="cannot be offloaded"):
        with_adapter(source, adapter, offload=True).load("language")

"""Each half is loaded in the precision that is asked for or that it was saved in, and nothing else
passes for it; an adapter computes in a half what it computes in PEFT's own hands."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.schema import HalfName
from stages.models import adapter_injection, describe, encode, generate, load_half
from stages.models.adapter_injection import adapted_modules
from stages.models.adapter_modules import modules_of, read_adapter
from stages.models.halves.boundary import HALVES
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.loading import ModelJob, facts
from stages.models.precision.quantize import check, plan
from stages.models.processors.loading import load_processor
from tests.support.adapters import adapter_of, source_of
from tests.support.clips import PROMPTS, clips, joint_inputs, profile_of, without_pixels
from tests.support.families import change_config, checkpoint, copy_of, made_once

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
FULL_PATHS = ("model.visual", "model.vision_tower", "model.multi_modal_projector", "lm_head")
BARE_NAMES = ("visual", "vision_tower", "multi_modal_projector", "lm_head")
"""How older checkpoints name what they left alone; the loader of today passes over such names."""


def loaded(folder: Path, keep: HalfName, precision: str, dtype: str = "float32") -> Any:
    job = ModelJob(model=str(folder), precision=precision, dtype=dtype, attention="sdpa")
    return job.load(keep)


@made_once
def saved(
    to: Path, family: str = "llava", kind: str = "nf4", skip: tuple[str, ...] = FULL_PATHS
) -> None:
    """A checkpoint as transformers itself saves it in 4 or 8 bit."""
    folder = source_of(family)
    four: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
    settings: dict[str, Any] = {"load_in_8bit": True} if kind == "int8" else four
    loader: Any = transformers.AutoModelForImageTextToText
    quantization: Any = transformers.BitsAndBytesConfig(
        llm_int8_skip_modules=list(skip), bnb_4bit_use_double_quant=kind == "nf4", **settings
    )
    whole = loader.from_pretrained(folder, quantization_config=quantization, dtype=torch.float32)
    whole.save_pretrained(to)
    own: Any = load_processor(folder)
    own.save_pretrained(to)


def captions_of(folder: Path, vision: str, language: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and logits of two pictures, from halves that are each in a precision."""
    processor = load_processor(folder)
    inputs = joint_inputs(processor, clips("image", 2, height=96, width=96), PROMPTS[:2])
    features = encode(loaded(folder, "vision", vision), inputs)
    half = loaded(folder, "language", language)
    messages = {"output_logits": True, "return_dict_in_generate": True}
    made: Any = generate(half, without_pixels(inputs), features, **GREEDY, **messages)
    return made.sequences, torch.stack(made.logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind"),
    [("llava", "int8"), ("demo", "nf4"), ("qwen2_5_vl", "int8"), ("qwen2_5_vl", "nf4")],
)
def test_all_layers_of_a_half_but_the_output_head_are_quantized(family: str, kind: str) -> None:
    profile = profile_of(source_of(family))
    for keep in HALVES:
        half = loaded(source_of(family), keep, kind)
        found = facts(half)
        count = getattr(profile, keep).linear_modules
        assert found["quantized_modules"] == {kind: count}
        assert found["linear_modules"] == count + (keep == "language")
    assert type(half.get_output_embeddings()) is torch.nn.Linear
    assert half.get_output_embeddings().weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "skip"),
    [
        *(("nf4", FULL_PATHS), ("nf4", BARE_NAMES), ("int8", None), ("int8", BARE_NAMES)),
        *(("fp4", None), ("fp4", FULL_PATHS)),
    ],
    ids=["nf4-paths", "nf4-bare", "int8-all", "int8-bare", "fp4-all", "fp4-paths"],
)
def test_a_checkpoint_that_was_saved_quantized_loads_as_it_is(
    kind: str, skip: tuple[str, ...] | None, tmp_path: Path
) -> None:
    paths = ("lm_head",) if skip is None else FULL_PATHS
    folder = Path(shutil.copytree(saved("llava", kind, paths), tmp_path / "model"))
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_config(folder, quantization_config={**settings, "llm_int8_skip_modules": skip})
    profile, plain = describe(folder), profile_of(checkpoint("llava"))
    assert profile.language.stored_as == kind
    assert profile.vision.stored_as == ("" if skip else kind)
    for keep in HALVES:
        assert getattr(profile, keep).parameters == getattr(plain, keep).parameters
        found = facts(loaded(folder, keep, getattr(profile, keep).stored_as))["quantized_modules"]
        stored = getattr(profile, keep).stored_as
        assert found == ({stored: getattr(profile, keep).linear_modules} if stored else {})
    held = sum(half.stored_bytes for half in (profile.vision, profile.language))
    assert 0 < (folder / "model.safetensors").stat().st_size - held < 1 << 16


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_checkpoint_stored_in_bf16_computes_in_the_dtype_that_is_requested(
    kind: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved("llava", kind), tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    in_half = {
        name: each.to(torch.bfloat16) if each.dtype == torch.float32 and "SCB" not in name else each
        for name, each in weights.items()
        if "weight." not in name  # constants of 4 bit, which stay as they are
    }
    save_file({**weights, **in_half}, folder / "model.safetensors", metadata={"format": "pt"})
    for keep in HALVES:
        half = loaded(folder, keep, kind if keep == "language" else "fp32")
        types = {each.dtype for each in half.parameters() if each.is_floating_point()}
        assert types == {torch.float32}
    captions_of(folder, "fp32", kind)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), [("llava", "nf4"), ("llava", "int8"), ("demo", "nf4")])
def test_saved_quantized_it_says_what_it_says_quantized_on_loading(family: str, kind: str) -> None:
    folder = saved(family, kind)
    tokens, logits = captions_of(source_of(family), "fp32", kind)
    assert all(map(torch.equal, captions_of(folder, "fp32", kind), (tokens, logits)))
    assert not torch.equal(captions_of(source_of(family), "fp32", "fp32")[1], logits)


def test_a_wrong_count_of_quantized_modules_fails() -> None:
    """A list of what to spare that names too much, through the real loader."""
    folder = checkpoint("llava")
    planned = plan(skeleton_of(*config_and_class(folder, False)), "language", "nf4", torch.float32)
    good = load_half(folder, "language", **planned.options)
    check(good, planned)
    settings = planned.options["quantization_config"]
    settings.llm_int8_skip_modules.append("model.language_model.layers.0")
    half = load_half(folder, "language", **planned.options)
    with pytest.raises(EnvironmentFault, match="planned 14 modules in nf4, found 7 in nf4"):
        check(half, planned)
    with pytest.raises(EnvironmentFault, match="in no quantization, found 7 in nf4"):
        check(half, replace(planned, kind="", modules=frozenset()))
    with pytest.raises(EnvironmentFault, match="in nf4, found none"):
        check(load_half(folder, "language"), planned)


@pytest.mark.slow
def test_weights_that_are_not_what_the_configuration_says_fail(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("llava"), tmp_path / "saved"))
    plain = copy_of("llava", tmp_path / "plain")
    shutil.copy(folder / "config.json", plain)
    change_config(folder, quantization_config=None)
    for wrong, words in ((plain, "config.json says"), (folder, "config.json has no quantization")):
        with pytest.raises(UsageError, match=f"(the weights are|is quantized) .*, but {words}"):
            describe(wrong)
        with pytest.raises(UsageError, match=r"the weights are .*, but config\.json says"):
            loaded(wrong, "language", "nf4")


@pytest.mark.slow
def test_the_plain_half_of_a_quantized_checkpoint_loads_without_the_other(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("llava"), tmp_path / "saved"))
    names = profile_of(saved("llava")).vision.tensors
    weights = {n: t for n, t in load_file(folder / "model.safetensors").items() if n in names}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert facts(loaded(folder, "vision", "fp32"))["quantized_modules"] == {}


def test_what_was_saved_in_one_precision_is_refused_in_another() -> None:
    with pytest.raises(UsageError, match="saved in nf4 and cannot be converted to int8"):
        loaded(saved("llava"), "language", "int8")


@pytest.mark.parametrize("keep", HALVES)
def test_attention_is_chosen_for_one_half_alone(keep: HalfName) -> None:
    job = ModelJob(model=str(checkpoint("llava")), dtype="float32", attention="eager")
    half: Any = job.load(keep)
    assert facts(half)["attention"] == "eager"
    parts = {"vision": half.config.vision_config, "language": half.config.text_config}
    for name, part in parts.items():
        assert part._attn_implementation == ("eager" if name == keep else "sdpa")


def test_attention_that_cannot_be_had_fails_in_one_line() -> None:
    with pytest.raises(EnvironmentFault, match="flash_attention_2 attention cannot be") as raised:
        ModelJob(model=str(checkpoint("llava")), attention="flash_attention_2").load("language")
    assert "\n" not in str(raised.value)
    with pytest.raises(EnvironmentFault, match=r"eager\+sdpa attention was .* uses sdpa"):
        ModelJob(model=str(checkpoint("llava")), attention="eager+sdpa").load("language")


TARGETS = ("q_proj", "v_proj", "down_proj")
TWICE = "layers.1.self_attn.q_proj"
"""A layer of another rank."""


def saved_by_peft(source: Path, folder: Path) -> Any:
    """An adapter that PEFT made, as after some steps, and the model with it."""
    from peft import LoraConfig, get_peft_model

    half: Any = load_half(source, "language", dtype=torch.float32)
    path = f"(.*language_model.*({'|'.join(TARGETS)}))"
    messages: dict[str, Any] = {"r": 4, "lora_alpha": 6, "use_rslora": True}
    config = LoraConfig(target_modules=path, rank_pattern={TWICE: 8}, **messages)
    model = get_peft_model(half, config)
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)
    model.save_pretrained(str(folder))
    return model.eval()


def with_adapter(source: Path, adapter: Path, **options: Any) -> Any:
    profile = profile_of(source)
    options |= {"route": profile.route, "extra_modules": profile.language.extra_modules}
    adapted = modules_of(read_adapter(adapter), profile)
    return ModelJob(model=str(source), adapter=str(adapter), adapted=adapted, **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["demo", "llava"])
def test_what_peft_saved_computes_what_it_computed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_injection, "GROUP_BYTES", 1 << 12)  # some layers at a time
    source = source_of(name)
    theirs = saved_by_peft(source, tmp_path / "adapter")
    job = with_adapter(source, tmp_path / "adapter", dtype="float32")
    ours = job.load_reloadable("language").model
    ids = torch.arange(5, 17)[None]
    with torch.inference_mode():
        expected, found = (m(input_ids=ids).logits for m in (theirs, ours))
        plain = load_half(source, "language", dtype=torch.float32)(input_ids=ids).logits
    assert torch.equal(found, expected) and not torch.equal(found, plain)
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
    message = facts(half)
    assert message["adapted_modules"] == 28 and message["linear_modules"] == 29


def test_an_offloaded_half_takes_none(tmp_path: Path) -> None:
    source = source_of("demo")
    adapter = adapter_of(tmp_path / "adapter", profile_of(source))
    with pytest.raises(UsageError, match="cannot be offloaded"):
        with_adapter(source, adapter, offload=True).load("language")

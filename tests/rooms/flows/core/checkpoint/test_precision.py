"""What the halves of a run are run in: chosen by few rules, written into every key and record, and
true of what the stages load."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import penstock_demo
from artifacts.errors import UsageError
from flows.core.checkpoint import precision
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import (
    PartSettings,
    attention,
    precision_note,
    resolve_settings,
    weight_bytes,
)
from flows.core.ledger.namespaces import variant_of
from flows.core.options.commands import CaptionConfig
from flows.core.pipelines import CAPTION
from flows.core.plan.half import settings_as_run
from flows.core.plan.ladder import Rung
from stages.models.hub.checkpoint import Checkpoint
from stages.models.loading import ModelJob
from stages.models.profile import ModelProfile
from tests.support import gpus
from tests.support.described import demo_profile
from tests.support.stand_ins import PROFILE


@pytest.fixture(scope="module")
def profile() -> ModelProfile:
    """Of the demo: in bfloat16, its classes take FlashAttention."""
    return demo_profile()


@pytest.fixture(autouse=True)
def cpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)


def answer_to(profile: ModelProfile, device: str = "cpu", **options: Any) -> list[list[str]]:
    """What the vision and the language half are run in."""
    found = resolve_settings(CaptionConfig(sources=("a.mp4",), **options), profile, device)
    return [[half.precision, half.dtype] for half, *_ in found.values()]


FP32, BF16, FP16 = ["fp32", "float32"], ["bf16", "bfloat16"], ["fp16", "float16"]
BOTH = [[["int8", dtype], ["nf4", dtype]] for dtype in ("float32", "bfloat16")]


@pytest.mark.parametrize(
    ("options", "on_cpu", "on_gpu"),
    [
        ({}, [FP32, FP32], [BF16, BF16]),
        ({"precision": "fp32"}, [FP32, FP32], [FP32, FP32]),
        ({"precision": "bf16"}, [BF16, BF16], [BF16, BF16]),
        ({"precision": "fp16"}, [FP16, FP16], [FP16, FP16]),
        ({"precision": "nf4"}, [FP32, ["nf4", "float32"]], [BF16, ["nf4", "bfloat16"]]),
        ({"language_precision": "int8"}, [FP32, ["int8", "float32"]], [BF16, ["int8", "bfloat16"]]),
        ({"precision": "nf4", "vision_precision": "int8"}, *BOTH),
        ({"vision_precision": "nf4"}, [["nf4", "float32"], FP32], [["nf4", "bfloat16"], BF16]),
        ({"precision": "fp16", "language_precision": "bf16"}, [FP16, BF16], [FP16, BF16]),
    ],
)
def test_each_half_is_run_in_what_is_asked_of_it(
    profile: ModelProfile, options: dict[str, str], on_cpu: Any, on_gpu: Any
) -> None:
    assert answer_to(profile, **options) == on_cpu
    assert answer_to(profile, "cuda:0", **options) == on_gpu


def test_a_cpu_may_keep_bfloat16(profile: ModelProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    assert answer_to(profile) == [BF16, BF16]
    assert answer_to(profile, precision="nf4") == [BF16, ["nf4", "bfloat16"]]


def saved_in(profile: ModelProfile, vision: str, language: str) -> ModelProfile:
    halves = zip(profile.parts.items(), (vision, language), strict=True)
    return replace(profile, parts={p: replace(half, stored_as=s) for (p, half), s in halves})


def bare(profile: ModelProfile) -> ModelProfile:
    """Without a layer of the vision half that can be quantized."""
    vision = replace(profile.vision, linear_modules=0)
    return replace(profile, parts={**profile.parts, "vision": vision})


def test_a_checkpoint_saved_quantized_is_named_for_what_it_is(profile: ModelProfile) -> None:
    saved = saved_in(profile, "", "nf4")
    assert answer_to(saved) == answer_to(saved, precision="nf4") == [FP32, ["nf4", "float32"]]
    assert answer_to(saved, vision_precision="fp16") == [FP16, ["nf4", "float32"]]
    fp4 = saved_in(profile, "fp4", "fp4")
    assert answer_to(fp4) == [["fp4", "float32"]] * 2
    stored = profile.language.stored_bytes
    assert weight_bytes(fp4.language, "fp4", "float32") == stored


def test_other_weights_of_a_checkpoint_saved_quantized_are_cast_for_a_device_without_their_dtype(
    profile: ModelProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, saved = CaptionConfig(sources=("a.mp4",)), saved_in(profile, "", "nf4")
    cast = resolve_settings(config, saved, "cpu")
    assert not resolve_settings(config, profile, "cpu")["language"][0].cast
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    as_stored = resolve_settings(config, saved, "cpu")
    for part in ("vision", "language"):  # the loader leaves both as stored
        assert cast[part][0].cast and cast[part][0].key_fields != as_stored[part][0].key_fields
        assert not as_stored[part][0].cast
    half = saved.language
    added = cast["language"][0].weight_bytes - as_stored["language"][0].weight_bytes
    assert added == 2 * (half.parameters - half.linear_parameters)
    as_run = settings_as_run(cast["language"][0], half, Rung(stage="decode", batch=1))
    assert as_run.weight_bytes == cast["language"][0].weight_bytes


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"precision": "bf16"}, "--language-precision bf16: not possible .* in nf4"),
        ({"language_precision": "int8"}, "--language-precision int8: not possible .* in nf4"),
        ({"vision_precision": "nf4"}, "--vision-precision nf4: not possible .* unquantized"),
    ],
)
def test_what_is_saved_quantized_or_has_no_layers_is_kept(
    profile: ModelProfile, options: dict[str, str], text: str
) -> None:
    with pytest.raises(UsageError, match=text) as raised:
        answer_to(saved_in(profile, "", "nf4"), **options)
    assert "native" in raised.value.hint
    with pytest.raises(UsageError, match="vision half has no linear layer"):
        answer_to(bare(profile), vision_precision="nf4")


def test_a_model_that_is_run_whole_sees_in_what_it_reads_in(profile: ModelProfile) -> None:
    whole = replace(profile, route="joint")
    assert answer_to(whole, precision="nf4") == [FP32, ["nf4", "float32"]]
    assert answer_to(whole, vision_precision="fp32") == [FP32, FP32]
    with pytest.raises(UsageError, match="cannot be split"):
        answer_to(whole, vision_precision="nf4")
    with pytest.raises(UsageError, match="cannot be split"):
        answer_to(whole, vision_precision="fp16", language_precision="bf16")
    with pytest.raises(UsageError, match=r"--features-as int8-64: not possible .* its pixels"):
        answer_to(whole, features_as="int8-64")


def chain(profile: ModelProfile, device: str = "cpu", **options: Any) -> dict[str, list[str]]:
    """What each half may go down to."""
    found = resolve_settings(CaptionConfig(sources=("a.mp4",), **options), profile, device)
    return {str(half): [settings.label for settings in every[1:]] for half, every in found.items()}


NONE: dict[str, list[str]] = {"vision": [], "language": []}
DOWN = ["int8", "nf4"]
WORDS = ["fp32 with a quantized KV cache", *DOWN]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"precision": "auto"}, {"vision": DOWN, "language": WORDS}),
        ({"precision": "auto", "vision_precision": "native"}, {"vision": [], "language": WORDS}),
        ({"vision_precision": "auto"}, {"vision": DOWN, "language": []}),
        ({"precision": "nf4"}, NONE),
        ({}, NONE),
    ],
)
def test_auto_begins_natively_and_goes_down_where_it_was_given_leave(
    profile: ModelProfile, options: dict[str, str], found: dict[str, list[str]]
) -> None:
    if options != {"precision": "nf4"}:
        assert answer_to(profile, "cuda:0", **options) == [BF16, BF16]
    assert chain(profile, **options) == found


def test_what_cannot_be_quantized_is_no_rung(profile: ModelProfile) -> None:
    assert chain(saved_in(profile, "", "nf4"), precision="auto") == NONE
    assert chain(bare(profile), precision="auto") == {"vision": [], "language": WORDS}
    whole = replace(profile, route="joint")
    assert chain(whole, precision="auto") == {"vision": [], "language": WORDS}


@pytest.mark.parametrize(
    ("keep", "name"),
    [("vision", "fp16"), ("vision", "int8"), ("language", "fp32"), ("language", "nf4")],
)
def test_bytes_are_foretold(profile: ModelProfile, keep: Any, name: str) -> None:
    config = CaptionConfig(sources=("a",), vision_precision=name, language_precision=name)
    settings = resolve_settings(config, profile, "cpu")[keep][0]
    job = ModelJob(model=str(penstock_demo.CHECKPOINT), dtype=settings.dtype, precision=name)
    half: Any = job.load(keep)
    found = sum(weight.numel() * weight.element_size() for weight in half.parameters())
    slack = 0.05 if name in ("int8", "nf4") else 0  # scales are not among the parameters
    assert found <= settings.weight_bytes <= found * (1 + slack)


def test_flash_attention_if_it_can(profile: ModelProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    half = profile.language
    assert attention(half, "bfloat16", "cuda:0") == "sdpa"
    monkeypatch.setattr(precision, "flash_installed", lambda: True)
    assert attention(half, "bfloat16", "cuda:0") == "sdpa", "no GPU tells what it can"
    monkeypatch.setattr(precision, "device_capability", lambda _: (8, 0))
    assert attention(half, "bfloat16", "cuda:0") == "flash_attention_2"
    assert attention(half, "float16", "cuda:0") == "flash_attention_2"
    assert attention(half, "float32", "cuda:0") == "sdpa"
    assert attention(half, "bfloat16", "cpu") == "sdpa"
    assert attention(replace(half, flash=False), "bfloat16", "cuda:0") == "sdpa"
    assert attention(replace(half, attention="eager"), "bfloat16", "cpu") == "eager"
    monkeypatch.setattr(precision, "device_capability", lambda _: (7, 5))
    assert attention(half, "bfloat16", "cuda:0") == "sdpa"


def test_before_ampere_a_checkpoint_in_bf16_is_run_in_fp16_and_that_is_said(
    profile: ModelProfile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def note(device: str = "cuda:0", **options: Any) -> str:
        settings = resolve_settings(CaptionConfig(sources=("a.mp4",), **options), profile, "cuda:0")
        return precision_note(profile, [half[0] for half in settings.values()], device)

    gpus.see(gpus.plain(), tmp_path / "new", monkeypatch)
    assert answer_to(profile, "cuda:0") == [BF16, BF16]
    assert not note() and not note(precision="bf16") and not note(precision="fp16")
    gpus.see(gpus.turing(), tmp_path / "old", monkeypatch)
    assert answer_to(profile, "cuda:0") == [FP16, FP16]
    assert answer_to(profile, "cuda:0", precision="nf4") == [FP16, ["nf4", "float16"]]
    assert answer_to(profile, "cuda:0", precision="bf16") == [BF16, BF16]
    assert answer_to(replace(profile, dtype="float32"), "cuda:0") == [FP32, FP32]
    assert "fp16 is used" in note() and "square of the tokens" in note(precision="bf16")
    assert not note(precision="fp32")
    assert not note("cpu") and not note("cpu", precision="bf16")


def test_each_key_holds_what_its_half_is_run_in() -> None:
    settings = PartSettings(precision="fp32", dtype="float32", attention="sdpa", weight_bytes=4)
    changes = [{}, {"precision": "nf4"}, {"dtype": "bfloat16"}, {"attention": "eager"}]
    others: list[PartSettings] = [replace(settings, **change) for change in changes]  # type: ignore[arg-type]
    of_language = [namespaces(settings, other) for other in others]
    assert len({namespace["features"] for namespace in of_language}) == 1
    assert len({namespace["captions"] for namespace in of_language}) == 4
    of_vision = [namespaces(other, settings) for other in others]
    assert len({namespace["features"] for namespace in of_vision}) == 4
    assert len({namespace["captions"] for namespace in of_vision}) == 4
    assert len({namespace["frames"] for namespace in [*of_language, *of_vision]}) == 1


def namespaces(vision: PartSettings, language: PartSettings) -> Any:
    model = Model(
        name="any",
        checkpoint=Checkpoint(name="any", folder=Path("any")),
        profile=PROFILE,
        digests={"vision": "v", "language": "l"},
        settings={"vision": (vision,), "language": (language,)},
    )
    config, parts = CaptionConfig(sources=("a.mp4",)), {k: s[0] for k, s in model.settings.items()}
    return variant_of(config, model, model.sampling(config), CAPTION, parts)

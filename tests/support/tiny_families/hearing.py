"""Tiny random-weight models of every family of transformers that sees and hears: `hearing` builds a
variant's model and inputs, with the places of its sound behind its pictures."""

from collections.abc import Callable
from typing import Any

import torch

from tests.support.tiny_families.grids import EAR
from tests.support.tiny_families.parts import (
    AUDIO,
    FAMILIES,
    NONE,
    Built,
    decisive,
    hf,
    prompt_inputs,
    small,
)

Sound = Callable[[Any, int], dict[str, Any]]
"""Model and rows → inputs of sound."""
PLACES = {"gemma3n": 111}
"""Family → token that stands for sound, where it is not AUDIO."""


def _masked(name: str, *shape: int) -> Sound:
    def inputs(model: Any, rows: int) -> dict[str, Any]:
        mask = torch.ones(rows, shape[0], dtype=torch.bool)
        return {name: torch.randn(rows, *shape), f"{name}_mask": mask}

    return inputs


def _qwen(model: Any, rows: int) -> dict[str, Any]:
    mask = torch.ones(rows, 96, dtype=torch.long)
    return {"input_features": torch.randn(rows, 20, 96), "feature_attention_mask": mask}


def _dots3_note(model: Any, rows: int) -> dict[str, Any]:
    samples = torch.tensor([32_000] * rows)
    return {"input_features": torch.randn(rows, 128, 200), "chunk_sample_lengths": samples}


def _inkling(model: Any, rows: int) -> dict[str, Any]:
    mask = torch.ones(rows, 7, dtype=torch.bool)
    return {"audio_input_ids": torch.randint(0, 16, (rows, 7, 8)), "audio_input_ids_mask": mask}


def _muse_spark(model: Any, rows: int) -> dict[str, Any]:
    return _masked("input_values", model.config.audio_config.samples_per_token * 6)(model, rows)


SOUND: dict[str, Sound] = {
    "qwen2_5_omni_thinker": _qwen,
    "qwen3_omni_moe_thinker": _qwen,
    "gemma3n": _masked("input_features", 40, 8),
    "gemma4": _masked("input_features", 64, 128),
    "gemma4_unified": _masked("input_features", 9, 16),
    "dots3_note": _dots3_note,
    "inkling": _inkling,
    "muse_spark": _muse_spark,
    "nemotron_h_omni": _masked("input_features", 80, 16),
}
"""Family → makes the inputs of its sound."""
_gemma4: dict[str, Any] = small(intermediate_size=NONE, output_proj_dims=32)
_gemma4 |= dict(subsampling_conv_channels=(128, 4), attention_chunk_size=12)
_parakeet: dict[str, Any] = small(num_mel_bins=16, subsampling_conv_channels=8)
EARS: dict[str, Callable[[], Any]] = {
    "qwen3_omni_moe_thinker": lambda: hf.Qwen3OmniMoeAudioEncoderConfig(
        **{**EAR, "downsample_hidden_size": 8, "n_window": 50}
    ),
    "gemma4": lambda: hf.Gemma4AudioConfig(**_gemma4, attention_context_left=13),
    "gemma4_unified": lambda: hf.Gemma4UnifiedAudioConfig(audio_embed_dim=16),
    "nemotron_h_omni": lambda: hf.ParakeetEncoderConfig(
        projection_hidden_size=64, projection_bias=True, **_parakeet
    ),
}
"""Family → the configuration of an audio encoder, where its entry in FAMILIES has none that can be
run."""
HEARING = tuple(
    variant
    for family in SOUND
    for variant in (family, f"{family}:video", f"{family}:b2")
    if variant in FAMILIES
)


def hearing(variant: str) -> Built:
    """The model of a variant, and its inputs."""
    torch.manual_seed(0)
    family = variant.partition(":")[0]
    model, inputs = FAMILIES[variant]()
    if family in EARS:
        config = model.config
        config.audio_config = EARS[family]()
        model = decisive(type(model)(config))
    rows = len(inputs["input_ids"])
    sound = SOUND[family](model, rows)
    return model, {**_with_places(family, inputs, places_of(model, sound, rows)), **sound}


def places_of(model: Any, sound: dict[str, Any], rows: int) -> int:
    """Placeholders of one row's sound."""
    with torch.no_grad():
        given = {**sound}
        made = model.base_model.get_audio_features(**given, return_dict=True)
    if (mask := made.get("attention_mask")) is not None:
        return int(mask.sum()) // rows
    if "audio_mel_mask" in made:
        return int(model.config.audio_soft_tokens_per_image)
    found = made.last_hidden_state if made.pooler_output is None else made.pooler_output
    return int(found.numel() // found.shape[-1] // rows)


def _with_places(family: str, inputs: dict[str, Any], places: int) -> dict[str, Any]:
    """The inputs with placeholders before the last tokens of each row."""
    ids, place = inputs["input_ids"], PLACES.get(family, AUDIO)
    prompts: list[list[int]] = []
    kinds = {n: v for n, v in inputs.items() if _is_typed(n, v, ids)}
    typed: dict[str, list[list[int]]] = {name: [] for name in kinds}
    for row, mask in zip(range(len(ids)), inputs["attention_mask"], strict=True):
        shown = mask.bool()
        at = len(ids[row][shown]) - 2
        for name, value in (("input_ids", ids), *kinds.items()):
            old = value[row][shown].tolist()
            new = [place if name == "input_ids" else 0] * places
            (prompts if name == "input_ids" else typed[name]).append([*old[:at], *new, *old[at:]])
    widened = {name: prompt_inputs(rows)["input_ids"] for name, rows in typed.items()}
    return {**inputs, **prompt_inputs(prompts), **widened}


def _is_typed(name: str, value: Any, ids: torch.Tensor) -> bool:
    shaped = getattr(value, "shape", None) == ids.shape
    return shaped and name not in ("input_ids", "attention_mask")

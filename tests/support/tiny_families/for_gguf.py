"""Variants of tiny models for what llama.cpp does otherwise: masks, windows, rotary positions."""

from collections.abc import Callable
from typing import Any

from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.coded import DEFAULT_ROPES, MARKS, WINDOWED
from tests.support.tiny_families.grids import TURNED
from tests.support.tiny_families.parts import (
    IMAGE,
    INDEX,
    MARKED,
    MROPE,
    Built,
    clip,
    config_of,
    finish,
    llama,
    model_of,
    noise,
    patches,
    siglip,
    text,
)
from tests.support.tiny_families.shared import SMALL, stream

FIVE_AND_ONE = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
HALF_TURNED = {**MROPE, "partial_rotary_factor": 0.5}
LLAMA3: dict[str, Any] = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0)
LLAMA3 |= dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def windowed(pictures: int = 1, **changes: Any) -> Built:
    """Gemma 3 with five windows to one layer that sees all, as published."""
    sizes = {**WINDOWED, "num_hidden_layers": 7, "layer_types": FIVE_AND_ONE, **changes}
    config = config_of("Gemma3", sizes, siglip(), mm_tokens_per_image=4, **MARKS, **INDEX)

    def middle(places: int) -> list[int]:
        each = [IMAGE] * (places // pictures)
        return [token for _ in range(pictures) for token in (8, *each, 9, *range(20, 34))]

    pixels = {"pixel_values": noise(pictures)}
    return finish(model_of(config), pixels, types="token_type_ids", middle=middle)


def linear() -> Built:
    ropes = {**DEFAULT_ROPES, "full_attention": {**LINEAR, "rope_theta": 1000000.0}}
    return windowed(rope_parameters=ropes)


def prefixed() -> Built:
    """PaliGemma with a prompt whose tokens all see each other."""
    reader, seen = text("gemma", num_key_value_heads=1), siglip(projection_dim=32)
    config = config_of("PaliGemma", reader, seen, projection_dim=32, hidden_size=32, **INDEX)
    pixels = {"pixel_values": noise(1)}
    return finish(
        model_of(config), pixels, wrap=False, extra=lambda ids: {"token_type_ids": ids * 0}
    )


def half_turned(prefix: str, video: bool = False, **vision: Any) -> Built:
    """A GLM whose heads are rotated by half."""
    kind = {"model_type": "glm4v_text"} if prefix == "Glm46V" else {}
    sizes = {**TURNED, **kind, "hidden_size": 64, "rope_parameters": HALF_TURNED}
    seen = patches(**{**SMALL, "out_hidden_size": 64, **vision})
    config = config_of(prefix, sizes, seen, **MARKED)
    return finish(model_of(config), stream(1, False), types="mm_token_type_ids")


def scaled(rope: dict[str, Any]) -> Built:
    config = config_of("Llava", llama(rope_parameters=rope), clip(), **INDEX)
    return finish(model_of(config), {"pixel_values": noise(1)}, wrap=False)


VARIANTS: dict[str, Callable[[], Built]] = {
    **FAMILIES,
    "gemma3:windows": windowed,
    "gemma3:two": lambda: windowed(2),
    "gemma3:linear": linear,
    "paligemma:prefix": prefixed,
    "glm4v:half": lambda: half_turned("Glm4v"),
    "glm46v:half": lambda: half_turned("Glm46V", model_type="glm4v_vision"),
    "llava:llama3": lambda: scaled(LLAMA3),
    "llava:linear": lambda: scaled(LINEAR),
}
"""`family`, `family:variant` → its builder."""

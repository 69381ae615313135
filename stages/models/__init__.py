"""Loads and runs one half of a vision-language model at a time, by the model's own code.

    load_half(path, "vision" | "audio" | "language", **from_pretrained_options) -> model
    encode(vision_half, inputs) -> features
    encode(audio_half, inputs, "audio") -> heard; `features.with_sound(heard)` has both
    generate(language_half, inputs, features, **generate_options) -> tokens
    describe(path) -> ModelProfile
    resolve_model(name) -> folder

Nothing heavy is imported until one of these is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.models.halves.absent import NeedsWeights as NeedsWeights
    from stages.models.halves.features import Features as Features
    from stages.models.halves.features import encode as encode
    from stages.models.halves.generate import generate as generate
    from stages.models.halves.load import load_half as load_half
    from stages.models.hub.resolve import resolve_model as resolve_model
    from stages.models.inspection import describe as describe
    from stages.models.profile import ModelProfile as ModelProfile

_HOMES = {
    "Features": "halves.features",
    "NeedsWeights": "halves.absent",
    "ModelProfile": "profile",
    "describe": "inspection",
    "encode": "halves.features",
    "generate": "halves.generate",
    "load_half": "halves.load",
    "resolve_model": "hub.resolve",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

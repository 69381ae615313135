"""Finds the attention implementation that the classes of one half support."""

from typing import Any

from artifacts.schema import Part
from stages.models.halves.boundary import absent_paths, within


def attention_of(model: Any, keep: Part = "whole") -> str:
    """Return the attention implementations in a model, or in one half: usually one, else several
    joined by `+`."""
    return "+".join(sorted({str(p.config._attn_implementation) for p in _kept(model, keep)}))


def supports_flash(skeleton: Any, keep: Part) -> bool:
    """Return whether every class of one half supports FlashAttention."""
    return all(part._supports_flash_attn for part in _kept(skeleton, keep))


def for_half(skeleton: Any, keep: Part, implementation: str) -> dict[str, Any]:
    """Return the `attn_implementation` argument that selects it for one half and leaves the other
    half its default. A class that does not support it refuses to be built."""
    kept = {id(part.config) for part in _kept(skeleton, keep)}
    return _choices(skeleton.config, kept, implementation)


def _choices(config: Any, kept: set[int], implementation: str) -> dict[str, Any]:
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    found: dict[str, Any] = {
        name: _choices(part, kept, implementation)
        for name, part in parts.items()
        if part is not None
    }
    return {**found, "": implementation} if id(config) in kept else found


def _kept(model: Any, keep: Part) -> list[Any]:
    from transformers import PreTrainedModel

    absent = absent_paths(model, keep)
    return [
        module
        for path, module in model.named_modules()
        if isinstance(module, PreTrainedModel)
        and not any(within(path, ancestor) for ancestor in absent)
    ]

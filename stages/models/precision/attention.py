"""Which attention implementation the classes of one half take; knows nothing of devices."""

from typing import Any

from artifacts.schema import Part
from stages.models.halves.boundary import absent_paths


def attention_of(model: Any, absent: list[str] | None = None) -> str:
    """The implementations in a model, but for what is at `absent`: usually one, else several joined
    by `+`."""
    return "+".join(sorted({str(p.config._attn_implementation) for p in _kept(model, absent)}))


def attention_of_half(skeleton: Any, keep: Part) -> str:
    """What one half takes by default."""
    return attention_of(skeleton, absent_paths(skeleton, keep))


def supports_flash(skeleton: Any, keep: Part) -> bool:
    """Whether every class of one half takes FlashAttention."""
    return all(part._supports_flash_attn for part in _kept(skeleton, absent_paths(skeleton, keep)))


def for_half(skeleton: Any, keep: Part, implementation: str) -> dict[str, Any]:
    """The `attn_implementation` that gives it to one half and leaves the other its default, because
    a class that does not take it refuses to be built."""
    kept = {id(part.config) for part in _kept(skeleton, absent_paths(skeleton, keep))}
    return _choices(skeleton.config, kept, implementation)


def _choices(config: Any, kept: set[int], implementation: str) -> dict[str, Any]:
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    found: dict[str, Any] = {
        name: _choices(part, kept, implementation)
        for name, part in parts.items()
        if part is not None
    }
    return {**found, "": implementation} if id(config) in kept else found


def _kept(model: Any, absent: list[str] | None) -> list[Any]:
    from transformers import PreTrainedModel

    return [
        module
        for path, module in model.named_modules()
        if isinstance(module, PreTrainedModel)
        and not any(path == p or path.startswith(f"{p}.") for p in absent or ())
    ]

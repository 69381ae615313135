"""Reads a language half's context length in tokens from the model's configuration."""

import math
from collections.abc import Mapping
from typing import Any

NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""Names under which configurations say how many tokens there may be."""
STRETCHED = ("linear", "dynamic", "yarn", "longrope")
"""Kinds of RoPE scaling whose `factor` multiplies the context of the training before. `llama3` is
another: there the configuration states the context with the scaling in it."""
ORIGINAL = "original_max_position_embeddings"


def context_of(config: Any) -> dict[str, Any]:
    """Return what a profile has of the context of a model's language half, by its own names."""
    apart = bool(config.is_encoder_decoder)
    return {"context_tokens": context_tokens(config), "is_encoder_decoder": apart}


def context_tokens(config: Any) -> int:
    """Return the most tokens that a language half reads and writes, together, with its RoPE
    scaling; 0 where its configuration does not say."""
    text = config.get_text_config(decoder=True)
    found = (getattr(text, name, None) for name in NAMES)
    stated = next((value for value in found if isinstance(value, int) and value > 0), 0)
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not stated or not isinstance(scaling, Mapping):
        return stated
    by_layer = [each for each in scaling.values() if isinstance(each, Mapping)]
    # Layers of several kinds hold as much as the one that holds least.
    return min(_scaled(stated, each) for each in by_layer or [scaling])


def _scaled(stated: int, scaling: Mapping[str, Any]) -> int:
    """Return the context of layers with this scaling, where the configuration states so many
    tokens: those before it, from which the scaling enlarges them, or already those after it."""
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if kind not in STRETCHED or not isinstance(factor, int | float) or not math.isfinite(factor):
        return stated
    original = scaling.get(ORIGINAL)
    trained = original if isinstance(original, int) and original > 0 else stated
    return max(stated, math.floor(trained * factor))

"""Reads from a model's configuration how many tokens its language half can hold. The module imports
no model library."""

import math
from collections.abc import Mapping
from typing import Any

NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""Names under which configurations state the context length in tokens."""
STRETCHED = ("linear", "dynamic", "yarn", "longrope")
"""RoPE scaling types whose `factor` multiplies the original context. `llama3` is not one of them:
there the configuration already states the scaled context."""
ORIGINAL = "original_max_position_embeddings"


def context_tokens(config: Any) -> int:
    """Return how many tokens a language half can hold, prompt and answer together, with its RoPE
    scaling; 0 if its configuration does not state it."""
    text = config.get_text_config(decoder=True)
    limits = (getattr(text, name, None) for name in NAMES)
    stated = next((value for value in limits if isinstance(value, int) and value > 0), 0)
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not stated or not isinstance(scaling, Mapping):
        return stated
    by_layer = [rope for rope in scaling.values() if isinstance(rope, Mapping)]
    # If layers have different limits, the smallest limit applies.
    return min(_scaled(stated, rope) for rope in by_layer or [scaling])


def _scaled(stated: int, scaling: Mapping[str, Any]) -> int:
    """Return the context of layers with this scaling when the configuration states `stated` tokens:
    either the value before scaling, or already the scaled one."""
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if kind not in STRETCHED or not isinstance(factor, int | float) or not math.isfinite(factor):
        return stated
    original = scaling.get(ORIGINAL)
    trained = original if isinstance(original, int) and original > 0 else stated
    return max(stated, math.floor(trained * factor))

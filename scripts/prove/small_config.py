"""Makes a published configuration small: few layers, narrow ones, few experts.

All that decides a prompt, pixels or the order of computing stays as published: the vocabulary, ids
of tokens, sizes of images and patches, the context, kinds of layers, the form of the rotary
positions. Every width of the model becomes the same number, so that parts fit each other whatever
they call their widths.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

HEADS, HEAD = 4, 16
INNER = 96
LAYERS, VISION_LAYERS = 2, 3
"""Layers of a part without kinds of layers; a vision half's second to last one is often taken."""
WIDTHS = (
    *("hidden_size", "d_model", "embed_dim", "n_embd", "hidden_dim", "out_hidden_size"),
    *("projection_dim", "projection_size", "output_dim", "encoder_hidden_size", "mm_hidden_size"),
    *("image_text_hidden_size", "vision_hidden_size", "text_hidden_size", "hidden_size_per_layer"),
)
INNERS = (
    *("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"),
    *("encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "n_inner", "projector_intermediate_size"),
    *("connector_hidden_dim",),
)
HEAD_COUNTS = (
    *("num_attention_heads", "num_heads", "n_head", "encoder_attention_heads"),
    *("decoder_attention_heads", "attention_heads"),
)
LAYER_COUNTS = ("num_hidden_layers", "depth", "n_layer", "encoder_layers", "decoder_layers")
FIXED = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "hidden_size_per_layer_input": 16,
}
"""Name → the number that takes the place of a larger one."""
INDEXES = {
    "deepstack_visual_indexes": 3,
    "intermediate_layers_indices": 3,
    "fullatt_block_indexes": 1,
    "cross_attention_layers": 1,
}
"""Lists of layers → how many of them remain, the first ones."""
SECTION = "mrope_section"


def small_config(published: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Return a published config.json with small numbers. `config` is what transformers reads it
    as, which has the numbers that the file leaves to its class."""
    values = copy.deepcopy(dict(published))
    values.pop("quantization_config", None)
    # Where a part states no size of its heads, the width must give one that fits its sections.
    alone = (part for _, part in parts_of(config) if not part.sub_configs)
    derived = (part for part in alone if getattr(part, "head_dim", None) is None)
    sizes = (_head_size(part) for part in derived if any(_sections(part.to_dict())))
    width = HEADS * next(sizes, HEAD)
    for name, holder, part in _places(values, config):
        is_text = not any(kind in name for kind in ("vision", "audio"))
        _shrink(holder, part, width, is_text)
    _divide_sections(values, _divisor(config))
    for name in ("torch_dtype", "dtype"):
        _replace(values, name, "float32")
    return values


def parts_of(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a configuration and all inside of it, with the paths of their names."""
    yield name, config
    for below in config.sub_configs:
        if (part := getattr(config, below, None)) is not None:
            yield from parts_of(part, f"{name}.{below}".strip("."))


def _places(
    values: dict[str, Any], config: Any, name: str = ""
) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield the path of each part, where the file states its numbers, and the part."""
    for below in config.sub_configs:
        part = getattr(config, below, None)
        if part is None:
            continue
        path = f"{name}.{below}".strip(".")
        if isinstance(values.get(f"{below}_dict"), dict):  # older files state it twice
            yield from _places(values[f"{below}_dict"], part, path)
        if isinstance(values.get(below), dict):
            yield from _places(values[below], part, path)
        elif below == "text_config" and "num_hidden_layers" in values:  # older files: at the top
            yield path, values, part
        else:
            values[below] = {"model_type": part.model_type}
            yield from _places(values[below], part, path)
    yield name, values, config


def _head_size(part: Any) -> int:
    """Return the size of a head that keeps the shares of its rotary positions."""
    sections = list(_sections(part.to_dict()))
    if not sections:
        return HEAD
    heads = getattr(part, "num_attention_heads", None)
    size = getattr(part, "head_dim", None) or (part.hidden_size // heads if heads else 0)
    return int(size) // math.gcd(*sections[0], size) if size else HEAD


def _divisor(config: Any) -> int:
    sections = [s for _, part in parts_of(config) for s in _sections(part.to_dict())]
    return math.gcd(*sections[0]) if sections else 1


def _sections(values: Any) -> Iterator[list[int]]:
    if isinstance(values, Mapping):
        if isinstance(values.get(SECTION), list | tuple):
            yield list(values[SECTION])
        for below in values.values():
            yield from _sections(below)


def _divide_sections(values: Any, divisor: int) -> None:
    if isinstance(values, dict):
        if isinstance(values.get(SECTION), list):
            values[SECTION] = [number // divisor for number in values[SECTION]]
        for below in values.values():
            _divide_sections(below, divisor)


def _replace(values: Any, name: str, value: Any) -> None:
    """Replace what stands under a name, at any depth."""
    if isinstance(values, dict):
        if values.get(name) is not None:
            values[name] = value
        for below in values.values():
            _replace(below, name, value)


def _shrink(values: dict[str, Any], part: Any, width: int, is_text: bool) -> None:
    """Write small numbers for all sizes of a part."""
    stated = {**part.to_dict(), **values}
    layers = _layers(part, stated, is_text)
    head = _head_size(part)
    counts = {int(stated[n]) for n in LAYER_COUNTS if type(stated.get(n)) is int}
    for name, value in stated.items():
        if name in part.sub_configs or (made := _small(name, value, width, head)) is None:
            continue
        values[name] = made
    for name in LAYER_COUNTS:
        if type(stated.get(name)) is int:
            values[name] = layers
    if shared := stated.get("num_kv_shared_layers"):
        values["num_kv_shared_layers"] = min(int(shared), layers // 2)
    for name, value in [*values.items()]:
        if isinstance(value, list) and len(value) in counts and counts and len(value) > layers:
            values[name] = value[:layers]
    for name, count in INDEXES.items():
        if isinstance(stated.get(name), list) and stated[name]:
            values[name] = [*range(min(count, len(stated[name])))]
    if isinstance(stages := stated.get("depths"), list):  # each stage is twice as wide
        count = len(stages)
        values |= {"depths": [1] * count, "num_heads": [1] * count}
        values["embed_dim"] = width >> (count - 1)
    if "vision_output_dim" in stated:  # those layers' features beside each other
        joined = len(values.get("intermediate_layers_indices", ())) + 1
        values["vision_output_dim"] = joined * width
    if isinstance(stated.get("vision_feature_layer"), list):
        values["vision_feature_layer"] = [
            -1 - at % VISION_LAYERS for at in range(len(stated["vision_feature_layer"]))
        ]


def _layers(part: Any, stated: Mapping[str, Any], is_text: bool) -> int:
    """Return the fewest layers among which each kind occurs, twice if layers share a cache."""
    kinds = getattr(part, "layer_types", None) or stated.get("mlp_layer_types")
    count = LAYERS if is_text else VISION_LAYERS
    if isinstance(kinds, list):
        count = max(count, *(kinds.index(kind) + 1 for kind in set(kinds)))
    return 2 * count if stated.get("num_kv_shared_layers") else count


def _small(name: str, value: Any, width: int, head: int) -> Any:
    """Return the small number for one of a name; None if it stays."""
    if isinstance(value, list) and name in INNERS:
        return [INNER] * len(value)
    if type(value) is not int or value <= 0:
        return None
    if name in WIDTHS:
        return width
    if name in INNERS:
        return INNER
    if name in HEAD_COUNTS:
        return HEADS
    if name in ("num_key_value_heads", "num_global_key_value_heads"):
        return min(value, HEADS // 2)
    if name in ("head_dim", "global_head_dim"):
        return head
    return min(value, FIXED[name]) if name in FIXED else None

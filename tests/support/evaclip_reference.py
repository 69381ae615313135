"""The formulas of EVA-CLIP's original code, on the tensors of its files as they are."""

import torch
from torch.nn import functional

from tests.support.evaclip import HEAD, LAYERS, PATCH, Layout, Weights


def image_vectors(weights: Weights, layout: Layout, pixels: torch.Tensor) -> torch.Tensor:
    """The vectors of pictures by the original code's formulas."""
    patches = functional.conv2d(
        pixels,
        weights["visual.patch_embed.proj.weight"],
        weights["visual.patch_embed.proj.bias"],
        stride=PATCH,
    )
    first = weights["visual.cls_token"].expand(len(pixels), -1, -1)
    hidden = torch.cat([first, patches.flatten(2).mT], 1) + weights["visual.pos_embed"]
    for index in range(LAYERS):
        block = {
            name.removeprefix(f"visual.blocks.{index}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"visual.blocks.{index}.")
        }
        parts = ("norm1", _attention), ("norm2", _mlp)
        for norm, compute in parts:
            if layout.behind:
                hidden = hidden + _normed(compute(hidden, block), block, norm, layout.rms)
            else:
                hidden = hidden + compute(_normed(hidden, block, norm, layout.rms), block)
    vectors = _normed(hidden, weights, "visual.norm", layout.rms)[:, 0]
    return vectors @ weights["visual.head.weight"].T


def _normed(hidden: torch.Tensor, weights: Weights, name: str, rms: bool) -> torch.Tensor:
    width, weight = hidden.shape[-1:], weights[f"{name}.weight"]
    if rms:
        return functional.rms_norm(hidden, width, weight, eps=1e-6)
    return functional.layer_norm(hidden, width, weight, weights[f"{name}.bias"], eps=1e-6)


def _attention(hidden: torch.Tensor, block: Weights) -> torch.Tensor:
    query, key, value = functional.linear(hidden, block["attn.qkv.weight"]).chunk(3, -1)
    if "attn.q_bias" in block:
        query, value = query + block["attn.q_bias"], value + block["attn.v_bias"]
    return functional.linear(
        _attended(query, key, value), block["attn.proj.weight"], block["attn.proj.bias"]
    )


def _mlp(hidden: torch.Tensor, block: Weights) -> torch.Tensor:
    inner = functional.linear(hidden, block["mlp.fc1.weight"], block["mlp.fc1.bias"])
    return functional.linear(functional.gelu(inner), block["mlp.fc2.weight"], block["mlp.fc2.bias"])


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool = False
) -> torch.Tensor:
    query, key, value = (
        part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in (query, key, value)
    )
    made = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return made.transpose(1, 2).flatten(2)


def text_vectors(weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """The vectors of texts by the original code's formulas."""
    hidden = weights["text.token_embedding.weight"][ids]
    hidden = hidden + weights["text.positional_embedding"][: ids.shape[1]]

    def normed(states: torch.Tensor, name: str) -> torch.Tensor:
        pair = weights[f"text.{name}.weight"], weights[f"text.{name}.bias"]
        return functional.layer_norm(states, states.shape[-1:], *pair)

    def linear(states: torch.Tensor, name: str, join: str = ".") -> torch.Tensor:
        pair = weights[f"text.{name}{join}weight"], weights[f"text.{name}{join}bias"]
        return functional.linear(states, *pair)

    for index in range(LAYERS):
        block = f"transformer.resblocks.{index}"
        fused = linear(normed(hidden, f"{block}.ln_1"), f"{block}.attn.in_proj", "_")
        query, key, value = fused.chunk(3, -1)
        seen = _attended(query, key, value, causal=True)
        hidden = hidden + linear(seen, f"{block}.attn.out_proj")
        inner = linear(normed(hidden, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        hidden = hidden + linear(functional.gelu(inner), f"{block}.mlp.c_proj")
    ends = normed(hidden, "ln_final")[torch.arange(len(ids)), ids.argmax(-1)]
    return ends @ weights["text.text_projection"]

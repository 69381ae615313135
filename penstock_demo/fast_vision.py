"""The model's forward pass on a batch of equal-sized clips: the stock computation without its loop.

`tests/rooms/penstock_demo/test_model.py` compares it with the stock path.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as stock
from transformers.vision_utils import get_vision_position_ids

PATCH = 8
MERGE = 2

_rotate_half: Any = stock.rotate_half


def fuse_norms() -> None:
    """Make the stock norms use one fused kernel in this process, with fewer passes over memory."""

    def forward(norm: Any, hidden: Tensor) -> Tensor:
        weight: Tensor = norm.weight
        eps: float = norm.variance_epsilon
        return functional.rms_norm(hidden, list(weight.shape), weight.to(hidden.dtype), eps)

    norms: Any = stock.Qwen2_5_VLRMSNorm
    norms.forward = forward


def patchify(frames: Tensor) -> Tensor:
    """Turn byte frames (clip, time, height, width, 3) into (pair, patch, value), as the processor
    does."""
    clips, times, height, width, _ = frames.shape
    rows, columns = height // PATCH // MERGE, width // PATCH // MERGE
    scaled = (frames.float() / 127.5 - 1).permute(0, 1, 4, 2, 3)
    split = scaled.reshape(
        clips, times // 2, 2, 3, rows, MERGE, PATCH, columns, MERGE, PATCH
    ).permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return split.reshape(clips * times // 2, rows * columns * MERGE**2, -1)


@functools.cache
def _angles(encoder: Any, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    grid = torch.tensor([[1, rows * MERGE, columns * MERGE]])
    positions = get_vision_position_ids(grid, MERGE, kwargs={})
    cos, sin = encoder.rotary_pos_emb(torch.zeros(1), positions)
    return cos[None, :, None], sin[None, :, None]


def vision(model: Qwen2_5_VLForConditionalGeneration, frames: Tensor) -> Tensor:
    """Return merged features (clip, token, channel) of equal-sized clips."""
    encoder = model.model.visual
    clips, _, height, width, _ = frames.shape
    cos, sin = _angles(encoder, height // PATCH // MERGE, width // PATCH // MERGE)
    hidden = functional.linear(patchify(frames), encoder.patch_embed.proj.weight.flatten(1))
    pairs, patches, _ = hidden.shape
    for block in encoder.blocks:
        attention = block.attn
        heads = attention.num_heads
        packed = attention.qkv(block.norm1(hidden)).view(pairs, patches, 3, heads, -1)
        query, key, value = packed.permute(2, 0, 1, 3, 4).unbind(0)
        cosine, sine = cos.to(query.dtype), sin.to(query.dtype)
        query = query * cosine + _rotate_half(query) * sine
        key = key * cosine + _rotate_half(key) * sine
        # Plain bmm: on a CPU the fused attention's backward pass is four times slower at this size.
        query, key, value = (
            part.transpose(1, 2).reshape(pairs * heads, patches, -1) for part in (query, key, value)
        )
        weights = torch.bmm(query * attention.scaling, key.transpose(1, 2)).softmax(-1)
        mixed = torch.bmm(weights.to(value.dtype), value).view(pairs, heads, patches, -1)
        hidden = hidden + attention.proj(mixed.transpose(1, 2).reshape(pairs, patches, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged: Tensor = encoder.merger(hidden.reshape(pairs * patches, -1))
    return merged.view(clips, -1, merged.shape[-1])


def positions(
    before: int, patches: int, rows: int, columns: int, after: int, intervals: Tensor
) -> Tensor:
    """Return position ids (3, clip, token) of text, a clip and text; `intervals` are positions per
    patch."""
    clips = len(intervals)
    lead = torch.arange(before).expand(3, clips, before)
    time = (torch.arange(patches)[None] * intervals[:, None]).long()[..., None, None]
    shape = (clips, patches, rows, columns)
    seen = torch.stack(
        [
            time.expand(shape),
            torch.arange(rows)[None, None, :, None].expand(shape),
            torch.arange(columns).expand(shape),
        ]
    ).reshape(3, clips, -1)
    tail = torch.arange(after).expand(3, clips, after)
    start = before + max(rows, columns)
    return torch.cat([lead, seen + before, tail + start], -1)


def decode(
    model: Qwen2_5_VLForConditionalGeneration, ids: Tensor, features: Tensor, where: Tensor
) -> Tensor:
    """Return the last hidden states (clip, token, channel); `features` replace the placeholders in
    `ids`."""
    embedded = model.get_input_embeddings()(ids)
    pad_ids = (model.config.video_token_id, model.config.image_token_id)
    start = int(torch.isin(ids[0], torch.tensor(pad_ids)).nonzero()[0])
    end = start + features.shape[1]
    spliced = torch.cat(
        [embedded[:, :start], features.to(embedded.dtype), embedded[:, end:]], dim=1
    )
    hidden: Tensor = model.model.language_model(
        inputs_embeds=spliced, position_ids=where, use_cache=False
    ).last_hidden_state
    return hidden

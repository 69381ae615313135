"""Attention over packed segments of any lengths, in a form that a graph can hold.

Some encoders take the patches of all images in one row. Each image, or window of it, is a segment
that attends only to itself. transformers computes segment by segment, or passes the row and the
segments' ends to an attention function with "flash" in its name. This module provides such a
function:

1. It gathers the segments into a padded batch.
2. It computes attention under a mask.
3. It scatters the result back into the row.

The number of segments is the length of the tensor of their ends. The longest segment's length is
passed as the length of an empty tensor instead of a number. So no shape in the graph depends on
data, and segments of unequal length are computed correctly. transformers' own exporter assumes
equal lengths and is silently wrong otherwise.
"""

import contextlib
from collections.abc import Iterator, MutableMapping
from types import MethodType
from typing import Any

import torch
from torch import nn

NAME = "flash_packed"
LONGEST = ("max_seqlen", "max_window_seqlen")
"""Argument names for the length of an encoder's longest segment."""


def index_of(ends: torch.Tensor, longest: int) -> torch.Tensor:
    """Return the index of each segment's tokens in the row [segments, longest], with -1 as filler.
    `ends` [segments + 1] are the boundaries; no segment is longer than `longest`."""
    ends = ends.long()
    steps = torch.arange(longest, device=ends.device)[None]
    return torch.where(steps < (ends[1:] - ends[:-1])[:, None], ends[:-1, None] + steps, -1)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: torch.Tensor | int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention with the signature of transformers' attention functions.

    Query, key and value are [1, heads, row, width]. `cu_seq_lens_q` are the segment boundaries.
    `max_length_q` is the longest segment's length, or a tensor of that length."""
    attend = torch.nn.functional.scaled_dot_product_attention
    if (sharing := query.shape[1] // key.shape[1]) > 1:
        # Attention with shared key heads cannot be exported: give each query head its own keys.
        key, value = (part.repeat_interleave(sharing, dim=1) for part in (key, value))
    if cu_seq_lens_q is None:
        mask, scale = attention_mask, scaling
        found = attend(query, key, value, attn_mask=mask, scale=scale)
        return found.transpose(1, 2).contiguous(), None
    if max_length_q is None:
        max_length_q = int((cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).max())
    longest = max_length_q.shape[0] if isinstance(max_length_q, torch.Tensor) else max_length_q
    index = index_of(cu_seq_lens_q, longest)
    count, here = query.shape[2], index >= 0
    rows = [part[0].transpose(0, 1)[index.clamp(0)] for part in (query, key, value)]
    first, second, third = (row.transpose(1, 2) for row in rows)
    mask = here[:, None, None, :]
    made = attend(first, second, third, attn_mask=mask, scale=scaling)
    flat = made.transpose(1, 2).reshape(-1, made.shape[1], made.shape[3])
    # Filler goes to an extra place behind the row, which is cut off.
    back = torch.where(here, index, count).reshape(-1)
    whole = torch.zeros(count + 1, *flat.shape[1:], dtype=flat.dtype, device=flat.device)
    return whole.index_put((back,), flat)[None, :count], None


def pack(inputs: MutableMapping[str, Any]) -> None:
    """Replace the longest segment's length among an encoder's inputs by a tensor of that length."""
    for name in LONGEST:
        if isinstance(longest := inputs.get(name), int):
            inputs[name] = torch.zeros(longest, dtype=torch.long)


@contextlib.contextmanager
def attending_packed(encoder: nn.Module) -> Iterator[None]:
    """Make an encoder use packed attention inside the block; preparing its inputs takes this into
    account."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    configs = {id(c): c for m in encoder.modules() if (c := getattr(m, "config", None)) is not None}
    named = [(c, getattr(c, "_attn_implementation", None)) for c in configs.values()]
    before = [(config, name) for config, name in named if name is not None]
    for config, _ in before:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


@contextlib.contextmanager
def packing(encoder: nn.Module) -> Iterator[None]:
    """Make an encoder use packed attention inside the block, also in transformers' exporter.

    The exporter replaces the attention of many classes, but not a method of the instance. So
    `forward` is set on each attention instance.
    """
    from transformers.exporters import utils

    attentions = [m for m in encoder.modules() if "Attention" in type(m).__name__]
    for module in attentions:
        module.forward = MethodType(type(module).forward, module)
    utils._EXPORT_INPUT_PREPARERS[()] = lambda model, inputs: pack(inputs)
    try:
        with attending_packed(encoder):
            yield
    finally:
        del utils._EXPORT_INPUT_PREPARERS[()]
        for module in attentions:
            del module.__dict__["forward"]

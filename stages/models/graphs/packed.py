"""Attention over packed segments of any lengths that a graph can have. Knows no family.

Some towers take the patches of all pictures in one row, each picture or window of it a segment that
attends to itself alone. transformers computes segment by segment, or hands the whole row, with the
segments' ends, to an attention that has "flash" in its name. Such a one stands here: it gathers the
segments into a padded batch, attends under a mask, and puts all back into the row. Where each
number goes is an index made outside the graph, [segments, longest], with -1 where nothing is. So no
shape in the graph depends on data, and unequal segments are computed as they are; transformers'
exporter takes all for equally long, and is silently wrong where they are not.
"""

import contextlib
from collections.abc import Iterator, MutableMapping
from types import MethodType
from typing import Any

import torch
from torch import nn

NAME = "flash_packed"
ENDS = ("cu_seqlens", "cu_window_seqlens")
"""Names under which towers take the ends of their segments."""
LONGEST = ("max_seqlen", "max_window_seqlen")
"""Names of the longest segment's length, which the index says by itself."""


def index_of(ends: torch.Tensor) -> torch.Tensor:
    """Return for segments that end there [segments + 1] the places of their tokens in the row."""
    ends = ends.long()
    lengths = ends[1:] - ends[:-1]
    steps = torch.arange(int(lengths.max()), device=ends.device)[None]
    return torch.where(steps < lengths[:, None], ends[:-1, None] + steps, -1)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' attention functions do; query, key and value are [1, heads, row,
    width]. `cu_seq_lens_q` is an index, or the ends of the segments."""
    attend = torch.nn.functional.scaled_dot_product_attention
    shared = query.shape[1] != key.shape[1]
    if cu_seq_lens_q is None:
        mask, scale = attention_mask, scaling
        found = attend(query, key, value, attn_mask=mask, scale=scale, enable_gqa=shared)
        return found.transpose(1, 2).contiguous(), None
    index = cu_seq_lens_q.long() if cu_seq_lens_q.ndim == 2 else index_of(cu_seq_lens_q)
    count, here = query.shape[2], index >= 0
    rows = [part[0].transpose(0, 1)[index.clamp(0)] for part in (query, key, value)]
    first, second, third = (row.transpose(1, 2) for row in rows)
    mask = here[:, None, None, :]
    made = attend(first, second, third, attn_mask=mask, scale=scaling, enable_gqa=shared)
    flat = made.transpose(1, 2).reshape(-1, made.shape[1], made.shape[3])
    # What is no token goes to a place past the row, which is cut off.
    back = torch.where(here, index, count).reshape(-1)
    whole = torch.zeros(count + 1, *flat.shape[1:], dtype=flat.dtype, device=flat.device)
    return whole.index_put((back,), flat)[None, :count], None


def pack(inputs: MutableMapping[str, Any]) -> None:
    """Put an index in place of the ends of segments among the inputs of a tower."""
    for name in ENDS:
        ends = inputs.get(name)
        if isinstance(ends, torch.Tensor) and ends.ndim == 1:
            inputs[name] = index_of(ends)
    for name in LONGEST:
        if name in inputs:
            inputs[name] = 1  # a number that the graph never reads


@contextlib.contextmanager
def packing(tower: nn.Module) -> Iterator[None]:
    """Have a tower attend so, and transformers' exporter prepare its inputs for it, while inside.

    That exporter replaces the attention of many classes; a method of the instance itself is not
    replaced.
    """
    from transformers import AttentionInterface
    from transformers.exporters import utils
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    configs = {id(c): c for m in tower.modules() if (c := getattr(m, "config", None)) is not None}
    before = [(c, c._attn_implementation) for c in configs.values() if _names_attention(c)]
    attentions = [m for m in tower.modules() if "Attention" in type(m).__name__]
    for config, _ in before:
        config._attn_implementation = NAME
    for module in attentions:
        module.forward = MethodType(type(module).forward, module)
    markers = tuple(ENDS[:1])
    utils._EXPORT_INPUT_PREPARERS[markers] = lambda model, inputs: pack(inputs)
    try:
        yield
    finally:
        del utils._EXPORT_INPUT_PREPARERS[markers]
        for module in attentions:
            del module.__dict__["forward"]
        for config, name in before:
            config._attn_implementation = name


def _names_attention(config: Any) -> bool:
    return getattr(config, "_attn_implementation", None) is not None

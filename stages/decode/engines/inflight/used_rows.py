"""Attention of a decode step over the slots alone.

A step computes more rows than there are slots if memory holds fewer sequences than the step has
rows. The linear layers compute all rows, so that rounding does not depend on the slots. Keys and
values exist for the slots only.

1. While a prompt is prefilled, `noted_keys` notes which tensors reach transformers' SDPA function.
2. A cache layer whose keys are among them is direct: nothing comes between the cache and attention.
3. In a step, a direct layer returns the keys and values of the slots, and `attention_of_slots`
   computes attention for these rows. The output of the other rows is zero.
4. The keys of any other layer are copied to all rows in each step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SDPA = "sdpa"
"""Name of the attention that takes part; others copy."""
MASK_CHECKS = ("_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa")
"""Functions that read a mask on the host in order to leave out one that hides nothing."""


@contextmanager
def noted_keys() -> Iterator[list[StorageWeakRef]]:
    """Yield a list to which attention adds the storage of all keys that it receives."""
    seen: list[StorageWeakRef] = []

    def attend(module: Any, query: Any, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(StorageWeakRef(key.untyped_storage()))
        return sdpa_attention_forward(module, query, key, *args, **kwargs)

    with _attention(attend):
        yield seen


def direct_layers(cache: Any, seen: Sequence[StorageWeakRef]) -> tuple[bool, ...]:
    """Return for each layer of a cache whether attention received its keys; nothing for a cache
    without layers, which has no slots."""
    noted = {ref.cdata for ref in seen}  # a weak reference keeps its number from being used again
    keys = (getattr(layer, "keys", None) for layer in getattr(cache, "layers", ()))
    return tuple(
        torch.is_tensor(key) and StorageWeakRef(key.untyped_storage()).cdata in noted
        for key in keys
    )


@contextmanager
def attention_of_slots() -> Iterator[None]:
    """Compute attention for the rows that have keys. Masks are always made: leaving one out would
    wait for the device, and would make a row depend on its neighbours."""
    before = {name: getattr(masking_utils, name) for name in MASK_CHECKS}
    for name in MASK_CHECKS:
        setattr(masking_utils, name, lambda *_, **__: False)
    try:
        with _attention(_attend_used):
            yield
    finally:
        for name, function in before.items():
            setattr(masking_utils, name, function)


@contextmanager
def _attention(function: Any) -> Iterator[None]:
    ALL_ATTENTION_FUNCTIONS[SDPA] = function
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[SDPA]


def _attend_used(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention for as many rows as have keys, and zeros for the others."""
    rows, used = len(query), len(key)
    if used == rows:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    for name, given in kwargs.items():
        kwargs[name] = given[:used] if torch.is_tensor(given) and len(given) == rows else given
    if attention_mask is not None and len(attention_mask) == rows:
        attention_mask = attention_mask[:used]
    output, _ = sdpa_attention_forward(module, query[:used], key, value, attention_mask, **kwargs)
    return torch.cat([output, output.new_zeros(rows - used, *output.shape[1:])]), None

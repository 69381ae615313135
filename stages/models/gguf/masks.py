"""Finds the tokens of a prompt that see later ones, by the attention masks of transformers."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from artifacts.errors import UsageError
from stages.models.gguf import PIECE_TOKENS

MASKED = -1e4
"""Additive masks are below this where attention must not look."""
Blocks = Sequence[tuple[int, int]]
"""Ranges of tokens that all see each other, such as those of a picture."""


def blocks_of(masks: Any, count: int, after: int, window: int, causal: bool) -> Blocks:
    """Return the blocks among `count` tokens of a prompt after `after` others. All other tokens see
    only themselves and earlier ones. `masks`: a mask [..., tokens, tokens] of additions or of
    truths, a mask [1, tokens] of padding, None, or a mask for each kind of layers. Layers with a
    sliding window see `window` tokens. A prompt without a mask of truths is read as `causal` says.
    Raises UsageError for any other mask."""
    by_kind = masks if isinstance(masks, dict) else {"full_attention": masks}
    seen = {kind: truths for kind, mask in by_kind.items() if (truths := _seen(mask)) is not None}
    place, columns = torch.arange(after, after + count)[:, None], torch.arange(after + count)
    whole = seen.get("full_attention", (columns <= place) | (not causal))
    if whole.shape != (count, after + count):
        raise _unknown("has another size than its prompt")
    if not torch.equal(whole, columns < whole.sum(-1, keepdim=True)):
        raise _unknown("hides earlier tokens")
    near = seen.get("sliding_attention")
    if near is not None and not torch.equal(near, whole & (columns > place - window)):
        raise _unknown("has another window than the model states")
    return list(_blocks([int(end) - after for end in whole.sum(-1)]))


def _seen(mask: Any) -> torch.Tensor | None:
    """Return which tokens each token sees, [tokens, tokens]; None if nothing is said."""
    if not isinstance(mask, torch.Tensor):
        return None
    if mask.ndim == 2:
        if not mask.all():
            raise _unknown("hides earlier tokens")
        return None
    return mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] > MASKED


def _blocks(ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(ends):
        to = ends[at]
        if to <= at or to > len(ends) or set(ends[at:to]) != {to}:
            raise _unknown("lets tokens see some of the later ones")
        if to > at + 1:
            yield at, to
        at = to


def pieces_of(count: int, blocks: Blocks) -> Iterator[tuple[int, int, bool]]:
    """Return the pieces in which a prompt of `count` tokens is read, and whether each is causal. A
    block is one piece."""
    at = 0
    for start, to in (*blocks, (count, count)):
        for first in range(at, start, PIECE_TOKENS):
            yield first, min(first + PIECE_TOKENS, start), True
        if to > start:
            yield start, to, False
        at = to


def _unknown(why: str) -> UsageError:
    return UsageError(
        f"the attention mask of this prompt {why}, which is not mapped to llama.cpp",
        hint="Use the checkpoint with --engine auto",
    )

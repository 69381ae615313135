"""The inputs and terms of an engine's memory estimate, and the estimate for llama.cpp besides the
weights. Imports no model library.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from artifacts.wording import counted
from stages.decode.engines import EngineSpec
from stages.models.cache_memory import RowMemory
from stages.models.gguf import COLUMN_MULTIPLE, PIECE_TOKENS, ROWS, GgufShape


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotLoad:
    """The largest workload of an engine's slots."""

    engine: EngineSpec
    memory: RowMemory
    """KV-cache size of a sequence."""
    number_bytes: int
    """Bytes per number of the compute dtype."""
    slots: int
    tokens: int
    """Tokens of the longest prompt."""
    new_tokens: int
    """Maximum number of tokens of a caption."""
    prompt_bytes: int
    """Peak memory of the prefill of one prompt, in bytes."""
    device: str
    score_bytes: int = 0
    """Bytes per logit that selecting the tokens of a step takes besides the logits."""
    gguf: GgufShape | None = None
    """Dimensions of the GGUF file that runs; None: torch runs the decoder."""
    direct: bool = True
    """Whether attention is torch's SDPA, which can read the keys of the slots alone."""


class SlotTerm(NamedTuple):
    """One term of an engine's estimate, and its source."""

    part: Literal["activation", "kv", "workspace"]
    bytes: int
    why: str
    """One line: the factors of the product."""


SCORE_BYTES: Mapping[str, int] = {
    "avoid": 10,
    "schema": 13,
    **dict.fromkeys(("presence_penalty", "repetition_penalty"), 13),
    **dict.fromkeys(("no_repeat_ngram", "retry_loops"), 13),
    **dict.fromkeys(("temperature", "top_k"), 16),
    **dict.fromkeys(("top_p", "sampling"), 26),
}
"""Setting of token selection → most bytes per logit besides it, while the tokens of a step are
selected. Top-p sorts: 4 bytes of scores, 12 of the sorted ones with their indices, 4 of sums, 2 of
masks, 4 of the result."""


def score_bytes(settings: Iterable[str]) -> int:
    """Return the bytes per logit that selecting tokens with these settings takes; 0: greedily."""
    return max((SCORE_BYTES.get(name, 0) for name in settings), default=0)


WIDE, NARROW = 4, 2
"""Bytes per number, in 32 and in 16 bit."""
MLP_INNER, MLP_WIDTH = 3, 3.6
"""Numbers per token while a piece passes an MLP, in multiples of its inner and outer width. These
and the next are measured: docs/gguf.md, "Memory"."""
ATTENTION_WIDTH = 5.5
"""Numbers per token while attention is computed, besides scores, in multiples of the width."""
INPUT_COPIES = 2
"""Copies of a prompt's input rows: merged with features, and as llama.cpp takes them."""
RESERVE_BYTES = 4 << 20
"""Bytes that llama.cpp takes while it reads, besides its buffers and inputs."""


def slot_terms(load: SlotLoad) -> Iterator[SlotTerm]:
    """Yield the KV cache, which every sequence has whether it runs or not, and the buffers."""
    assert load.gguf is not None
    shape, sequences = load.gguf, ROWS + 1
    number = WIDE if shape.exact else NARROW
    # llama.cpp keeps all tokens of layers with a sliding window, too, so that they can be copied.
    layers = tuple(replace(kind, window=0) for kind in load.memory.kept)
    memory = replace(load.memory, kept=layers)
    columns = -(-(load.tokens + load.new_tokens) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
    cache = memory.bytes(columns, number)
    why = f"{counted(sequences, 'sequence')} x {columns:,} tokens x {cache / columns:,.0f} bytes"
    yield SlotTerm("kv", sequences * (cache + memory.states(WIDE)), why)
    waiting = memory.bytes(load.tokens, number)
    why = f"the cache of one prompt of {load.tokens:,} tokens, on its way to its row"
    yield SlotTerm("kv", 2 * waiting, why)
    piece = max(PIECE_TOKENS, load.tokens * shape.whole)
    why = f"llama.cpp's buffers for {piece:,} tokens of a prompt"
    yield SlotTerm("activation", compute_bytes(shape, columns, piece), why)
    rows = INPUT_COPIES * load.tokens * shape.width * WIDE
    logits = 3 * (ROWS + 1) * memory.words * WIDE
    why = f"inputs of {load.tokens:,} tokens, logits of {counted(ROWS, 'row')}, reading"
    yield SlotTerm("activation", rows + logits + RESERVE_BYTES, why)


def compute_bytes(shape: GgufShape, columns: int, piece: int) -> int:
    """Return the size of llama.cpp's compute buffer: the larger of an MLP and of attention, for one
    piece of a prompt. Flash attention keeps no scores."""
    inside = MLP_INNER * shape.inner + MLP_WIDTH * shape.width
    if shape.exact:
        inside = max(inside, shape.heads * columns + ATTENTION_WIDTH * shape.width)
    mask = columns * (WIDE if shape.exact else NARROW)
    return round(piece * (WIDE * inside + mask))

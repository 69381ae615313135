"""Estimates the memory of decoding in llama.cpp besides the weights. Imports no model library."""

from collections.abc import Iterator
from dataclasses import replace

from artifacts.plurals import counted
from stages.decode.engines.slot_load import SlotLoad, SlotTerm
from stages.models.gguf import COLUMN_MULTIPLE, PIECE_TOKENS, ROWS

WIDE = 4
"""Bytes per number of the KV cache and of logits."""
RESERVE_BYTES = 48 << 20
"""Bytes that llama.cpp takes while it reads, besides its buffers. Measured: 1 to 45 MiB."""


def slot_terms(load: SlotLoad) -> Iterator[SlotTerm]:
    """Yield the KV cache, which every sequence has whether it runs or not, and the buffers."""
    # llama.cpp keeps all tokens of layers with a sliding window, too, so that they can be copied.
    kept = tuple(replace(kind, window=0) for kind in load.memory.kept)
    memory, sequences = replace(load.memory, kept=kept), ROWS + 1
    columns = -(-(load.tokens + load.new_tokens) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
    each = memory.bytes(columns, WIDE)
    why = f"{counted(sequences, 'sequence')} x {columns:,} tokens x {each / columns:,.0f} bytes"
    yield SlotTerm("kv", sequences * (each + memory.states(WIDE)), why)
    waiting = memory.bytes(load.tokens, WIDE)
    why = f"the cache of one prompt of {load.tokens:,} tokens, on its way to its row"
    yield SlotTerm("kv", 2 * waiting, why)
    logits = 2 * ROWS * memory.words * WIDE
    why = f"at most {PIECE_TOKENS} tokens of a prompt, and logits of {counted(ROWS, 'row')}"
    yield SlotTerm("activation", load.prompt_bytes + logits + RESERVE_BYTES, why)

"""Estimates the memory of decoding in llama.cpp besides the weights. Imports no model library."""

from collections.abc import Iterator

from artifacts.plurals import counted
from stages.decode.engines.slot_load import SlotLoad, SlotTerm
from stages.models.gguf import COLUMN_MULTIPLE, PIECE_TOKENS, ROWS

WIDE = 4
"""Bytes per number of the KV cache and of logits."""
RESERVE_BYTES = 48 << 20
"""Bytes that llama.cpp takes while it reads, besides its buffers. Measured: 1 to 45 MiB."""


def slot_terms(load: SlotLoad) -> Iterator[SlotTerm]:
    """Yield the KV cache, which every sequence has whether it runs or not, and the buffers."""
    memory, sequences = load.memory, ROWS + 1
    columns = -(-(load.tokens + load.new_tokens) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
    each = memory.bytes(columns, WIDE)
    why = f"{counted(sequences, 'sequence')} x {columns:,} tokens x {each / columns:,.0f} bytes"
    yield SlotTerm("kv", sequences * each, why)
    waiting = memory.bytes(load.tokens, WIDE)
    why = f"the cache of one prompt of {load.tokens:,} tokens, on its way to its row"
    yield SlotTerm("kv", 2 * waiting, why)
    logits = 2 * ROWS * memory.words * WIDE
    why = f"at most {PIECE_TOKENS} tokens of a prompt, and logits of {counted(ROWS, 'row')}"
    yield SlotTerm("activation", load.prompt_bytes + logits + RESERVE_BYTES, why)

"""Estimates the memory of in-flight batching besides the weights. Imports no model library.

The estimate covers the KV pool, the prefill of one prompt, a decode step, the check before use, the
shared prompt prefix and a compiler.
"""

from collections.abc import Iterator, Sequence

from artifacts.words import counted
from stages.decode.engines.inflight.pool_shape import (
    MIN_CHECK_SLOTS,
    PoolLayout,
    PoolShape,
    rows_for,
    trial_shapes,
)
from stages.decode.engines.slot_load import SlotLoad, SlotTerm
from stages.models.row_memory import RowMemory

WIDE = 4
"""Bytes of a number of the logits that a token is chosen by."""
COMPILER_BYTES, COMPILED_LAYER_BYTES = 190 << 20, 5 << 20
"""What torch's compiler takes, and for each layer of a step. Measured: 200 MiB of the demo's 4
layers, 300 of 24."""


def slot_terms(load: SlotLoad) -> Iterator[SlotTerm]:
    """Yield the cache and what is computed with."""
    memory, each, slots = load.memory, load.number_bytes, load.slots
    layout = PoolLayout(rows=rows_for(slots), compiled=load.engine.compiled)
    pool = layout.pool(slots, layout.columns(load.tokens + load.new_tokens))
    kept = pool_bytes(memory, pool, each)
    why = f"{counted(slots, 'slot')} x {pool.columns:,} columns x "
    why += f"{memory.bytes(pool.columns, each) / pool.columns:,.0f} bytes"
    if memory.states(each):
        why += f", and states of {counted(pool.rows, 'row')} x {memory.states(each):,} bytes"
    yield SlotTerm("kv", kept, why)
    prompt, step = load.prompt_bytes, step_bytes(memory, pool, each)
    why = f"one prompt of {load.tokens:,} tokens, which is read alone"
    if step > prompt:
        why = f"a token of each of {counted(pool.rows, 'row')}"
        why += " and a layer's cache of all" if pool.copied else ""
    yield SlotTerm("activation", max(prompt, step), why)
    trial = trial_bytes(memory, layout, slots, load.tokens, each) - kept - max(prompt, step)
    if slots > 1 and trial > 0:  # with one there are batches of one where it does not fit
        yield SlotTerm("kv", trial, "what is tried first: two prompts and a pool")
    if load.engine.by_chunk:
        shared = memory.bytes(load.tokens, each) + memory.states(each)
        why = f"what the prompts of a chunk have in common: at most {load.tokens:,} tokens"
        yield SlotTerm("kv", shared, why)
    if load.engine.compiled:
        yield compiler_term(memory, load.device)


def compiler_term(memory: RowMemory, device: str) -> SlotTerm:
    """Return what the host has beside a step that is compiled in its process."""
    layers = sum(kind.layers for kind in memory.kept)
    why = f"torch's compiler, and a step of {counted(layers, 'layer')} in it"
    size = COMPILER_BYTES + layers * COMPILED_LAYER_BYTES
    return SlotTerm("host" if device.startswith("cuda") else "workspace", size, why)


def pool_bytes(memory: RowMemory, pool: PoolShape, each: int) -> int:
    """Return what a pool keeps, in numbers of `each` bytes."""
    return pool.slots * memory.bytes(pool.columns, each) + pool.rows * memory.states(each)


def step_bytes(memory: RowMemory, pool: PoolShape, each: int) -> int:
    """Return what a step of a pool computes with. The logits are there in 32 bit too, and a layer's
    states as they were and as they are."""
    logits = memory.words * (each + WIDE * (each < WIDE))
    return pool.rows * (logits + memory.largest_states(each)) + pool.copied * memory.largest(
        pool.columns, each
    )


def trial_bytes(memory: RowMemory, layout: PoolLayout, slots: int, tokens: int, each: int) -> int:
    """Return what it takes at the least to try whether a half is for slots, by prompts of at most
    so many tokens."""
    rows = 2 * (memory.bytes(tokens, each) + memory.states(each))
    tried: Sequence[PoolShape] = trial_shapes(
        layout, min(MIN_CHECK_SLOTS, slots), tokens, lean=True
    )
    return rows + max(pool_bytes(memory, p, each) + step_bytes(memory, p, each) for p in tried)

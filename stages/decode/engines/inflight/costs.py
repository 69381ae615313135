"""Estimates the memory of in-flight batching besides the weights. Imports no model library.

The estimate covers the KV pool, the prefill of one prompt, a decode step, the check before use, the
shared prompt prefix and a compiler.
"""

from collections.abc import Iterator, Sequence

from artifacts.plurals import counted
from stages.decode.engines.inflight.pool_shape import (
    GPU_STEP_ROWS,
    MIN_CHECK_SLOTS,
    MIN_STEP_ROWS,
    PoolLayout,
    PoolShape,
    check_shapes,
    rows_for,
)
from stages.decode.engines.slot_load import SlotLoad, SlotTerm
from stages.models.kv_profile import RowMemory

WIDE = 4
"""Bytes per number of the logits that select a token."""
COPIED_LAYERS = frozenset({"DynamicIndexedLayer"})
"""Cache layers whose keys the model changes before attention, so that unused rows need a copy."""
COMPILER_BYTES, COMPILED_LAYER_BYTES = 190 << 20, 5 << 20
"""Memory of torch's compiler, and per layer of a step, in bytes. Measured: 200 MiB for the demo's 4
layers, 300 MiB for 24 layers."""


def slot_terms(load: SlotLoad) -> Iterator[SlotTerm]:
    """Yield the KV cache and the activations."""
    memory, each, slots = load.memory, load.number_bytes, load.slots
    fixed = load.device.startswith("cuda")
    rows = max(GPU_STEP_ROWS) if fixed else rows_for(slots)
    if fixed and memory.has_states:
        rows = MIN_STEP_ROWS
    layout = PoolLayout(rows=rows, fixed=fixed, compiled=load.engine.compiled)
    pool = layout.pool(slots, layout.columns(load.tokens + load.new_tokens))
    kept = pool_bytes(memory, pool, each)
    why = f"{counted(slots, 'slot')} x {pool.columns:,} columns x "
    why += f"{memory.bytes(pool.columns, each) / pool.columns:,.0f} bytes"
    if memory.states(each):
        why += f", and states of {counted(pool.rows, 'row')} x {memory.states(each):,} bytes"
    yield SlotTerm("kv", kept, why)
    prompt, step = load.prompt_bytes, step_bytes(memory, pool, each, load.direct)
    why = f"one prompt of {load.tokens:,} tokens, prefilled alone"
    if step > prompt:
        why = f"a token of each of {counted(pool.rows, 'row')}"
        why += " and a layer's cache of all" if copied_rows(memory, pool, load.direct) else ""
    yield SlotTerm("activation", max(prompt, step), why)
    check = check_bytes(load, layout) - kept - max(prompt, step)
    if slots > 1 and check > 0:  # if a check with one slot does not fit, batches of one run instead
        yield SlotTerm("kv", check, "the check before use: two prompts and a pool")
    if load.engine.by_chunk:
        shared = memory.bytes(load.tokens, each) + memory.states(each)
        why = f"the shared prefix of a chunk's prompts: at most {load.tokens:,} tokens"
        yield SlotTerm("kv", shared, why)
    if load.engine.compiled:
        yield compiler_term(memory, load.device)


def compiler_term(memory: RowMemory, device: str) -> SlotTerm:
    """Return the host memory of a compiled step in its process."""
    layers = sum(kind.layers for kind in memory.kept)
    why = f"torch's compiler and a step of {counted(layers, 'layer')} in it"
    size = COMPILER_BYTES + layers * COMPILED_LAYER_BYTES
    return SlotTerm("host" if device.startswith("cuda") else "workspace", size, why)


def pool_bytes(memory: RowMemory, pool: PoolShape, each: int) -> int:
    """Return the size of a pool in bytes. `each` is the number of bytes per number."""
    return pool.slots * memory.bytes(pool.columns, each) + pool.rows * memory.states(each)


def step_bytes(memory: RowMemory, pool: PoolShape, each: int, direct: bool = True) -> int:
    """Return the memory of one step in bytes. It includes the logits in 32 bit, and a layer's
    states before and after the step."""
    logits = memory.words * (each + WIDE * (each < WIDE))
    copies = copied_rows(memory, pool, direct) * memory.largest(pool.columns, each)
    return pool.rows * (logits + memory.largest_states(each)) + copies


def copied_rows(memory: RowMemory, pool: PoolShape, direct: bool) -> int:
    """Return the number of rows whose keys and values a layer copies per step. Attention of nearly
    all models reads the slots alone. `direct`: whether it is torch's SDPA."""
    changed = any(kind.kind in COPIED_LAYERS for kind in memory.kept)
    return pool.copied if changed or not direct else 0


def check_bytes(load: SlotLoad, layout: PoolLayout) -> int:
    """Return the minimum memory of the check in bytes."""
    memory, each, slots = load.memory, load.number_bytes, min(MIN_CHECK_SLOTS, load.slots)
    rows = 2 * (memory.bytes(load.tokens, each) + memory.states(each))
    shapes: Sequence[PoolShape] = check_shapes(layout, slots, load.tokens, lean=True)
    return rows + max(
        pool_bytes(memory, pool, each) + step_bytes(memory, pool, each, load.direct)
        for pool in shapes
    )

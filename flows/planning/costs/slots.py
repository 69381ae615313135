"""Estimates what decoding in slots takes beside the weights: the pool, a prompt that is read beside
it, a step, and the trial before. Knows no vision half, and not what happens where the trial fails.
"""

import math
from collections.abc import Iterator, Sequence

from artifacts.words import counted
from flows.job.precision import BYTES, UNSEATED, PartSettings
from flows.planning.batch_costs import Expected
from flows.planning.estimate import Purpose, Term
from flows.planning.workloads import Workload
from stages.decode.engines import COMPILED, IN_SLOTS, SEATED
from stages.decode.engines.inflight.shape import (
    BESIDE,
    Manner,
    PoolShape,
    rows_for,
    trial_shapes,
)
from stages.models.prefetch import PREFETCH_BATCHES
from stages.models.profile import PartProfile
from stages.models.row_memory import RowMemory

WIDE = 4
"""Bytes of a number of the logits that a token is chosen by."""
COMPILER_BYTES, COMPILED_LAYER_BYTES = 190 << 20, 5 << 20
"""What torch's compiler takes, and for each layer of a step. Measured: 200 MiB of the demo's 4
layers, 300 of 24."""
WAITING_BATCHES = 2
"""Batches that slots have taken and not begun, beside those that are read ahead."""


def seatable(half: PartProfile, settings: PartSettings) -> bool:
    """Return whether a half may be run in slots, as far as its profile tells; a trial tells the
    rest."""
    if not IN_SLOTS & {*settings.engines} or settings.kv or settings.precision in UNSEATED:
        return False
    memory = half.row_memory
    if memory is None or any(kind.kind not in SEATED for kind in memory.kept):
        return False
    windows = {kind.window for kind in memory.kept if kind.window}
    return len(windows) < 2 and any(kind.token_bytes for kind in memory.kept)


def slot_terms(
    memory: RowMemory,
    settings: PartSettings,
    workload: Workload,
    slots: int,
    new: int,
    reading: Expected,
) -> Iterator[Term]:
    """Yield the cache and what is computed with, for captions of at most `new` tokens in so many
    slots. `reading` is what one prompt takes to be read."""
    each = BYTES.get(settings.dtype, 4)
    manner = Manner(rows=rows_for(slots), compiled=settings.engines[0] == COMPILED)
    pool = manner.pool(slots, manner.columns(workload.tokens + new))
    kept = pool_bytes(memory, pool, each)
    why = f"{counted(slots, 'slot')} x {pool.columns:,} columns x "
    why += f"{memory.bytes(pool.columns, each) / pool.columns:,.0f} bytes"
    if memory.states(each):
        why += f", and states of {counted(pool.rows, 'row')} x {memory.states(each):,} bytes"
    yield Term(part="kv", bytes=kept, why=why)
    prompt, step = math.ceil(reading.peak_bytes), step_bytes(memory, pool, each)
    why = f"one prompt of {workload.tokens:,} tokens, which is read alone"
    if step > prompt:
        why = f"a token of each of {counted(pool.rows, 'row')}"
        why += " and a layer's cache of all" if pool.copied else ""
    yield Term(part="activation", bytes=max(prompt, step), why=why)
    trial = trial_bytes(memory, manner, slots, workload.tokens, each) - kept - max(prompt, step)
    if slots > 1 and trial > 0:  # with one there are batches of one where it does not fit
        yield Term(part="kv", bytes=trial, why="what is tried first: two prompts and a pool")


def prefix_term(memory: RowMemory, settings: PartSettings, workload: Workload) -> Term:
    """Return what is kept of a prompt for the others of its chunk."""
    each = BYTES.get(settings.dtype, 4)
    kept = memory.bytes(workload.tokens, each) + memory.states(each)
    why = f"what the prompts of a chunk have in common: at most {workload.tokens:,} tokens"
    return Term(part="kv", bytes=kept, why=why)


def compiler_term(memory: RowMemory, device: str) -> Term:
    """Return what the host has beside a step that is compiled in its process."""
    layers = sum(kind.layers for kind in memory.kept)
    part: Purpose = "host" if device.startswith("cuda") else "workspace"
    why = f"torch's compiler, and a step of {counted(layers, 'layer')} in it"
    return Term(part=part, bytes=COMPILER_BYTES + layers * COMPILED_LAYER_BYTES, why=why)


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


def trial_bytes(memory: RowMemory, manner: Manner, slots: int, tokens: int, each: int) -> int:
    """Return what it takes at the least to try whether a half is for slots, by prompts of at most
    so many tokens."""
    rows = 2 * (memory.bytes(tokens, each) + memory.states(each))
    tried: Sequence[PoolShape] = trial_shapes(manner, min(BESIDE, slots), tokens, lean=True)
    return rows + max(pool_bytes(memory, p, each) + step_bytes(memory, p, each) for p in tried)


def held_ahead(workload: Workload, slots: int) -> Term:
    """Return the features of rows in slots and of those to come: who runs out of memory begins them
    anew."""
    rows = min(workload.chunks, slots * (1 + WAITING_BATCHES + PREFETCH_BATCHES))
    why = f"features of {counted(rows, 'row')} in slots and to come"
    return Term(part="workspace", bytes=rows * workload.feature_bytes, why=why)

"""Computes the size of a slot pool, and estimates the memory of in-flight batching besides the
weights. Imports no model library.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from artifacts.wording import counted
from stages.decode.engines import GPU_SLOTS
from stages.decode.engines.slot_load import SlotLoad, SlotTerm
from stages.models.cache_memory import RowMemory

COLUMN_MULTIPLE = 64
"""Columns are a multiple of this, so that vectors of a kernel end with the columns."""
MIN_STEP_ROWS = 8
"""Minimum number of rows per step: on a CPU, products of fewer rows round differently."""
CHECK_TOKENS = 6
"""Maximum number of tokens per row in the check before use."""
GPU_STEP_ROWS = (GPU_SLOTS, 32, 16, 8)
"""Candidates for the fixed number of rows per step on a GPU, the best first."""
WIDER_FACTOR = 5
"""Columns of the second pool of the check, as a multiple of the first: enough that kernels split
them differently."""
MAX_WIDER_COLUMNS = 1024
"""Maximum number of additional columns: kernels split another thousand differently, too."""
MIN_CHECK_SLOTS = 2
"""Minimum number of slots that shows whether rows depend on their neighbours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolShape:
    """The dimensions of a pool."""

    rows: int
    """Rows that a step computes, whatever the slots, so rounding does not depend on them."""
    slots: int
    """Rows with memory; the other rows are unused."""
    columns: int
    """Maximum number of tokens of a sequence, its prompt included."""
    encoded: int = 0
    """Minimum number of columns of encoder output."""

    @property
    def copied(self) -> int:
        """Return the number of rows that a layer copies per step: all rows if some are unused. A
        single slot is expanded without a copy."""
        return self.rows if 1 < self.slots < self.rows else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolLayout:
    """A layout of sequences in a pool."""

    rows: int
    """Rows that a step computes."""
    fixed: bool = False
    """Whether every job has this number of rows, because the model's numbers depend on it."""
    rounded_to: int = 0
    """Columns up to which widths are rounded, because steps are recorded once per shape; 0: they
    are not rounded. The plan counts so many, so rounding takes no slot."""

    def columns(self, tokens: int) -> int:
        """Return the columns of a pool for sequences of at most `tokens` tokens. For recorded steps
        there are four widths up to twice as many."""
        columns = columns_for(tokens)
        if self.rounded_to:
            step = max(COLUMN_MULTIPLE, (1 << (columns - 1).bit_length()) // 8)
            return max(columns, min(-(-columns // step) * step, self.rounded_to))
        return columns

    def pool(self, slots: int, columns: int) -> PoolShape:
        """Return the shape of a pool with `slots` slots, or fewer if the layout has fewer rows."""
        slots = min(slots, self.rows)
        return PoolShape(rows=self.rows, slots=slots, columns=columns)


PLAIN = PoolLayout(rows=MIN_STEP_ROWS)
"""The layout for few slots."""


def candidate_layouts(slots: int, step_rows: Sequence[int] = ()) -> Iterator[PoolLayout]:
    """Yield the layouts for `slots` slots, the best first. `step_rows` are the fixed numbers of
    rows to try; empty: by the slots."""
    if not step_rows:
        yield PoolLayout(rows=rows_for(slots))
    for rows in step_rows or (MIN_STEP_ROWS,):
        yield PoolLayout(rows=rows, fixed=True)


def columns_for(tokens: int) -> int:
    """Return the columns of a pool for sequences of at most `tokens` tokens."""
    return -(-tokens // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def rows_for(slots: int) -> int:
    """Return the number of rows per step: a power of two, so that jobs share it."""
    return max(MIN_STEP_ROWS, 1 << (slots - 1).bit_length())


def check_shapes(
    layout: PoolLayout, slots: int, tokens: int, *, lean: bool = False
) -> tuple[PoolShape, PoolShape]:
    """Return the two pools of a check with sequences of at most `tokens` tokens: the job's own, and
    one that differs in every dimension that may vary. `lean` makes both as small as possible."""
    columns = layout.columns(tokens + CHECK_TOKENS)
    more = COLUMN_MULTIPLE if lean else min((WIDER_FACTOR - 1) * columns, MAX_WIDER_COLUMNS)
    longer = layout.columns(columns + more)
    rows = MIN_STEP_ROWS if layout.rows > MIN_STEP_ROWS else 2 * layout.rows
    other = layout if layout.fixed else replace(layout, rows=rows)
    return layout.pool(slots, columns), replace(other.pool(1, longer), encoded=longer)


LOGIT_BYTES = 4
"""Bytes per number of the logits that select a token."""
COPIED_LAYERS = frozenset({"DynamicIndexedLayer"})
"""Cache layers whose keys the model changes before attention, so that unused rows need a copy."""
GRAPH_BYTES = 80 << 20
"""Memory of a recorded step besides its numbers, in bytes: kernels, a workspace of cuBLAS for its
stream, weights of a layer in 16 bit. Measured on an H200: 44 to 86 MiB with the numbers."""


def slot_terms(load: SlotLoad) -> Iterator[SlotTerm]:
    """Yield the memory of the slots: KV cache, activations, the check before use, the prefix that
    prompts share, and a recorded step."""
    memory, number_bytes, slots = load.memory, load.number_bytes, load.slots
    fixed = load.device.startswith("cuda")
    rows = max(GPU_STEP_ROWS) if fixed else rows_for(slots)
    if fixed and memory.has_states:
        rows = MIN_STEP_ROWS
    layout = PoolLayout(rows=rows, fixed=fixed)
    pool = layout.pool(slots, layout.columns(load.tokens + load.new_tokens))
    kept = pool_bytes(memory, pool, number_bytes)
    why = f"{counted(slots, 'slot')} x {pool.columns:,} columns x "
    why += f"{memory.bytes(pool.columns, number_bytes) / pool.columns:,.0f} bytes"
    if memory.states(number_bytes):
        states = f"{memory.states(number_bytes):,} bytes"
        why += f", and states of {counted(pool.rows, 'row')} x {states}"
    yield SlotTerm("kv", kept, why)
    prompt, step = load.prompt_bytes, step_bytes(memory, pool, number_bytes, load.direct)
    selecting = selection_bytes(memory, pool.rows, load.score_bytes)
    computing, why = prompt, f"one prompt of {load.tokens:,} tokens, prefilled alone"
    if step > computing:
        computing, why = step, f"a token of each of {counted(pool.rows, 'row')}"
        why += " and a layer's cache of all" if copied_rows(memory, pool, load.direct) else ""
    if selecting > computing:
        computing, why = selecting, f"{counted(pool.rows, 'row')} whose tokens are selected"
    yield SlotTerm("activation", computing, why)
    check = check_bytes(load, layout) - kept - computing
    if slots > 1 and check > 0:  # if a check with one slot does not fit, batches of one run instead
        yield SlotTerm("kv", check, "the check before use: two prompts and a pool")
    if load.engine.by_chunk:
        shared = memory.bytes(load.tokens, number_bytes) + memory.states(number_bytes)
        why = f"the shared prefix of a chunk's prompts: at most {load.tokens:,} tokens"
        yield SlotTerm("kv", shared, why)
    if fixed:
        why = f"a recorded step of {counted(pool.rows, 'row')}, and its graph"
        yield SlotTerm("workspace", step + GRAPH_BYTES, why)


def pool_bytes(memory: RowMemory, pool: PoolShape, number_bytes: int) -> int:
    """Return the size of a pool in bytes, for numbers of `number_bytes` bytes."""
    sequence_bytes = memory.bytes(pool.columns, number_bytes)
    return pool.slots * sequence_bytes + pool.rows * memory.states(number_bytes)


def step_bytes(memory: RowMemory, pool: PoolShape, number_bytes: int, direct: bool = True) -> int:
    """Return the memory of one step in bytes. It includes the logits in 32 bit, and a layer's
    states before and after the step."""
    logits = memory.words * (number_bytes + LOGIT_BYTES * (number_bytes < LOGIT_BYTES))
    copies = copied_rows(memory, pool, direct) * memory.largest(pool.columns, number_bytes)
    return pool.rows * (logits + memory.largest_states(number_bytes)) + copies


def selection_bytes(memory: RowMemory, rows: int, score_bytes: int) -> int:
    """Return the memory of selecting the tokens of a step in bytes, with its logits in 32 bit."""
    return rows * memory.words * (LOGIT_BYTES + score_bytes)


def copied_rows(memory: RowMemory, pool: PoolShape, direct: bool) -> int:
    """Return the number of rows whose keys and values a layer copies per step. Attention of nearly
    all models reads the slots alone. `direct`: whether it is torch's SDPA."""
    changed = any(kind.kind in COPIED_LAYERS for kind in memory.kept)
    return pool.copied if changed or not direct else 0


def check_bytes(load: SlotLoad, layout: PoolLayout) -> int:
    """Return the minimum memory of the check in bytes."""
    memory, number_bytes, slots = load.memory, load.number_bytes, min(MIN_CHECK_SLOTS, load.slots)
    rows = 2 * (memory.bytes(load.tokens, number_bytes) + memory.states(number_bytes))
    shapes: Sequence[PoolShape] = check_shapes(layout, slots, load.tokens, lean=True)
    return rows + max(
        pool_bytes(memory, pool, number_bytes) + step_bytes(memory, pool, number_bytes, load.direct)
        for pool in shapes
    )

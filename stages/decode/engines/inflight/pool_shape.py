"""Computes the size of a slot pool, for the engine and for planning. Imports no model library."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from stages.decode.engines import GPU_SLOTS

COLUMN_MULTIPLE = 64
"""Columns are a multiple of this, so that vectors of a kernel end with the columns."""
BLOCK = 512
"""Maximum number of columns that an attention kernel reads per block, counted from the first
column."""
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
    """Rows that a step computes. Their number does not depend on the slots, so neither does
    rounding."""
    slots: int
    """Rows with memory; the other rows are unused."""
    columns: int
    """Maximum number of tokens of a sequence, its prompt included."""
    aligned: bool = False
    """Whether all sequences end at the last column instead of each at its own."""
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
    aligned: bool = False
    """Whether all sequences end at the last column."""
    compiled: bool = False
    """Whether the step is compiled, once per shape."""

    def columns(self, tokens: int) -> int:
        """Return the columns of a pool for sequences of at most `tokens` tokens. For compiled steps
        they double, so there are few shapes. Aligned ones grow by whole blocks, so a sequence is
        split at the same places whatever the width."""
        found = columns_for(tokens)
        if self.compiled:
            return COLUMN_MULTIPLE << (found // COLUMN_MULTIPLE - 1).bit_length()
        return -(-found // BLOCK) * BLOCK if self.aligned and found > BLOCK else found

    def pool(self, slots: int, columns: int) -> PoolShape:
        """Return the shape of a pool with `slots` slots, or fewer if the layout has fewer rows."""
        slots = min(slots, self.rows)
        return PoolShape(rows=self.rows, slots=slots, columns=columns, aligned=self.aligned)


PLAIN = PoolLayout(rows=MIN_STEP_ROWS)
"""The layout for few slots."""


def candidate_layouts(
    slots: int, *, compiled: bool, is_only_engine: bool, step_rows: Sequence[int] = ()
) -> Iterator[PoolLayout]:
    """Yield the layouts for `slots` slots, the best first. `is_only_engine` is whether no other
    engine may run. `step_rows` are the fixed numbers of rows to try; empty: by the slots."""
    if not step_rows:
        yield PoolLayout(rows=rows_for(slots), compiled=compiled)
    for rows in step_rows or (MIN_STEP_ROWS,):
        yield PoolLayout(rows=rows, fixed=True, compiled=compiled)
    # Aligned slots take the same memory used or not, so they are tried only if all are in use.
    # Their columns move after each step, where compiled code would not find them.
    if not compiled and (slots >= MIN_STEP_ROWS or is_only_engine):
        yield PoolLayout(rows=MIN_STEP_ROWS, fixed=True, aligned=True)


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
    longer = layout.columns(columns + (max(more, BLOCK) if layout.aligned else more))
    rows = MIN_STEP_ROWS if layout.rows > MIN_STEP_ROWS else 2 * layout.rows
    other = layout if layout.fixed else replace(layout, rows=rows)
    return layout.pool(slots, columns), replace(other.pool(1, longer), encoded=longer)

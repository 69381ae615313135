"""Computes the size of a slot pool, for the engine and for planning. Imports no model library."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

COLUMN_MULTIPLE = 64
"""Columns come in multiples of this, so that vectors in a kernel end where columns do."""
BLOCK = 512
"""Columns that a kernel goes through at once, at the most: it counts blocks from the first one."""
MIN_STEP_ROWS = 8
"""Rows of the smallest step: products of fewer are rounded otherwise, on a CPU."""
CHECK_TOKENS = 6
"""Tokens at most that a row of a trial goes on by."""
WIDER_FACTOR = 5
"""How many times the columns another pool of a trial has: so many that kernels cut them
otherwise."""
MAX_WIDER_COLUMNS = 1024
"""Most columns that it has more: kernels cut the next thousand otherwise, too."""
MIN_CHECK_SLOTS = 2
"""Fewest slots with which it can be tried what stands beside a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolShape:
    """The dimensions of a pool."""

    rows: int
    """Rows that a step computes: the same however many slots there are, so that numbers are."""
    slots: int
    """Rows that there is room for; the others are nobody's."""
    columns: int
    """Most tokens of a row, its prompt among them."""
    aligned: bool = False
    """Whether all rows end at the last column, and not each at its own."""
    encoded: int = 0
    """Fewest columns of what an encoder made of a prompt."""

    @property
    def copied(self) -> int:
        """Return the rows of which a layer that computes has a copy: all, where some are nobody's;
        of a single slot they are shown to all rows as they are."""
        return self.rows if 1 < self.slots < self.rows else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolLayout:
    """A layout of sequences in a pool."""

    rows: int
    """Rows that a step computes."""
    fixed: bool = False
    """Whether it computes so many in every job, because numbers hang on how many there are."""
    aligned: bool = False
    """Whether all rows end at the last column."""
    compiled: bool = False
    """Whether a step is compiled, for every shape anew."""

    def columns(self, tokens: int) -> int:
        """Return the columns of a pool whose rows have at most so many tokens. Those of steps that
        are compiled double, so that there are few shapes; aligned ones grow by whole blocks, so
        that a row is cut at the same places however many there are."""
        found = columns_for(tokens)
        if self.compiled:
            return COLUMN_MULTIPLE << (found // COLUMN_MULTIPLE - 1).bit_length()
        return -(-found // BLOCK) * BLOCK if self.aligned and found > BLOCK else found

    def pool(self, slots: int, columns: int) -> PoolShape:
        """Return the room of a pool of so many slots, or of as many as may be."""
        slots = min(slots, self.rows)
        return PoolShape(rows=self.rows, slots=slots, columns=columns, aligned=self.aligned)


PLAIN = PoolLayout(rows=MIN_STEP_ROWS)
"""The way that few slots have."""


def candidate_layouts(slots: int, *, compiled: bool, is_only_engine: bool) -> Iterator[PoolLayout]:
    """Yield the ways to have rows in so many slots, the best first; `insisted` is whether nothing
    else would serve."""
    yield PoolLayout(rows=rows_for(slots), compiled=compiled)
    yield PoolLayout(rows=MIN_STEP_ROWS, fixed=True, compiled=compiled)
    # Aligned rows take their room in use or not, so they come where all are in use. They lie
    # elsewhere after each step, where nothing that is compiled looks for them.
    if not compiled and (slots >= MIN_STEP_ROWS or is_only_engine):
        yield PoolLayout(rows=MIN_STEP_ROWS, fixed=True, aligned=True)


def columns_for(tokens: int) -> int:
    """Return the columns of a pool whose rows have at most so many tokens."""
    return -(-tokens // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def rows_for(slots: int) -> int:
    """Return how many rows a step computes: a power of two, so that other jobs compute as many."""
    return max(MIN_STEP_ROWS, 1 << (slots - 1).bit_length())


def trial_shapes(
    layout: PoolLayout, slots: int, tokens: int, *, lean: bool = False
) -> tuple[PoolShape, PoolShape]:
    """Return the pools of a trial by rows of at most so many tokens: the job's own, and one that is
    other in all that may be. A `lean` one is for who has not the memory for more."""
    columns = layout.columns(tokens + CHECK_TOKENS)
    more = COLUMN_MULTIPLE if lean else min((WIDER_FACTOR - 1) * columns, MAX_WIDER_COLUMNS)
    longer = layout.columns(columns + (max(more, BLOCK) if layout.aligned else more))
    rows = MIN_STEP_ROWS if layout.rows > MIN_STEP_ROWS else 2 * layout.rows
    other = layout if layout.fixed else replace(layout, rows=rows)
    return layout.pool(slots, columns), replace(other.pool(1, longer), encoded=longer)

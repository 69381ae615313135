"""Tells how large a pool of slots is: arithmetic for who makes one and for who plans one. Knows no
model, and imports no model library."""

from dataclasses import dataclass

COLUMNS = 64
"""Columns come in multiples of this, so that vectors in a kernel end where columns do."""
FEWEST = 8
"""Rows of the smallest step: products of fewer are rounded otherwise, on a CPU."""
TRIED = 6
"""Tokens at most that a row of a trial goes on by."""
LONGER = 5
"""How many times the columns another pool of a trial has: so many that kernels cut them
otherwise."""
FURTHER = 1024
"""Most columns that it has more: kernels cut the next thousand otherwise, too."""
BESIDE = 2
"""Fewest slots with which it can be tried what stands beside a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolShape:
    """The room of a pool."""

    rows: int
    """Rows that a step computes: the same however many slots there are, so that numbers are."""
    slots: int
    """Rows that there is room for; the others are nobody's."""
    columns: int
    """Most tokens of a row, its prompt among them."""

    @property
    def copied(self) -> int:
        """Return the rows of which a layer that computes has a copy: all, where some are nobody's;
        of a single slot they are shown to all rows as they are."""
        return self.rows if 1 < self.slots < self.rows else 0


def columns_for(tokens: int) -> int:
    """Return the columns of a pool whose rows have at most so many tokens."""
    return -(-tokens // COLUMNS) * COLUMNS


def rows_for(slots: int) -> int:
    """Return how many rows a step computes: a power of two, so that other jobs compute as many."""
    return max(FEWEST, 1 << (slots - 1).bit_length())


def trial_shapes(
    rows: int, slots: int, tokens: int, *, lean: bool = False
) -> tuple[PoolShape, PoolShape]:
    """Return the pools of a trial by rows of at most so many tokens: the job's own, and one that is
    other in all. A `lean` one is for who has not the memory for more."""
    columns = columns_for(tokens + TRIED)
    longer = COLUMNS if lean else min((LONGER - 1) * columns, FURTHER)
    other = PoolShape(rows=FEWEST if rows > FEWEST else 2 * rows, slots=1, columns=columns + longer)
    return PoolShape(rows=rows, slots=slots, columns=columns), other

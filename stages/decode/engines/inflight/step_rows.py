"""Keeps the number of rows of a decode step in the store: one per half, precision and kind of GPU.

On a GPU the rounding of a product may depend on its number of rows, so every job with a half
computes the same number of rows.

1. The first job's engine check tries the numbers of GPU_STEP_ROWS, the largest first, and takes the
   first in which rows do not depend on each other.
2. This number is stored. Later jobs check it alone.
3. If that check fails, for example after an update of torch, the next smaller number that passes is
   stored. The smallest stored number counts.
"""

from artifacts.packs import Record, RecordSet
from artifacts.store import open_store
from stages.decode.engines.inflight.pool_shape import GPU_STEP_ROWS

KIND = "rows"


class StoredStepRows:
    """The stored number of rows of one half."""

    def __init__(self, store: str, namespace: str) -> None:
        self._records = RecordSet(open_store(store), KIND, namespace)

    def candidates(self) -> tuple[int, ...]:
        """Return the numbers to check, the best first: all, or from the stored one downwards."""
        known = [int(self._records.meta(key)["rows"]) for key in sorted(self._records.keys())]
        return tuple(rows for rows in GPU_STEP_ROWS if rows <= min(known, default=rows))

    def keep(self, rows: int) -> None:
        """Store the number that passed the check."""
        self._records.publish([Record(key=f"{rows:03}", meta={"rows": rows})])

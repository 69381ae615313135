"""Pass modes: how inputs are divided into passes of a vision half. Imports no model library.

A row's bytes may depend on how many rows pass the half with it, because products of other sizes
are rounded differently. They do not depend on it where the number of rows is always the same: each
input passes alone, or, as small inputs use a processor badly when they are alone, FIXED_ROWS of one
shape pass together, and copies fill up the last pass.

Servers, and halves whose rows do depend on it, compute batches: all inputs of a batch pass
together, so the bytes of each depend on the others. These have cache namespaces of their own.
"""

from typing import Final

ALONE: Final = "alone"
FIXED: Final = "fixed"
BATCHES: Final = "batches"
FIXED_ROWS = 8
"""Rows of a fixed pass."""
KIND = "ways"
"""Kind of the records with results of checks: one cache namespace per half, precision and kind of
device, one record per number of rows and size class."""
WINDOWS = "windows"
"""Kind of the records with results of comparisons of windows (stages/models/halves/windows.py)."""


def pass_check_key(rows: int, size_class: int, threads: int) -> str:
    """Return the key of a check's record. `size_class`: base-2 logarithm of an input's values.
    `threads`: threads of a CPU, which divide the rows of a product among them; 0 on a GPU."""
    return f"{rows} rows of 2^{size_class} values" + f" on {threads} threads" * bool(threads)


def pass_mode_of(rows: int) -> str:
    """Return the pass mode of an input that passes with so many rows; 0: with its batch."""
    return {0: BATCHES, 1: ALONE}.get(rows, FIXED)

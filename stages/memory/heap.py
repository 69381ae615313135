"""Makes the C library return large freed blocks to the system.

A memory limit counts what a process has mapped. By default glibc keeps freed blocks for reuse, and
keeps more of them after larger ones. After a half was loaded tensor by tensor and quantized, the
process held four times the memory of the half.
"""

import contextlib
import ctypes
from collections.abc import Iterator

from stages.memory.oom_retry import release_memory
from stages.process.memory_limit import room

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SMALL_BYTES = 256 << 10
"""Blocks of this size or more are mapped separately and unmapped when they are freed."""
WORKING_BYTES = 1 << 20
"""The same size while batches are computed. Mapping each block separately costs 7 % of the
computing time at a width of 1024, and less at larger ones. With glibc's limit of 32 MiB, layers
with different block sizes hold twice the live memory, by an amount that cannot be predicted."""
KEPT_BYTES = 16 << 20
"""Bytes of smaller freed blocks that are kept for reuse."""
TIGHT_BYTES = 1 << 30
"""If less room than this is left under the limit, even smaller blocks are still returned after the
`trim_freed_blocks` block. glibc kept 130 MiB of fragments of a batch that did not fit. The limit
counted them, so half and a quarter of that batch did not fit either."""
MAX_THRESHOLD_BYTES = 32 << 20
"""Largest threshold that glibc accepts."""


def keep_freed_blocks() -> None:
    """Keep freed blocks for reuse, in a process whose blocks have similar sizes. Mapping new pages
    for a few images took half as long as decoding them."""
    _set(M_MMAP_THRESHOLD, MAX_THRESHOLD_BYTES)
    _set(M_TRIM_THRESHOLD, 2 * MAX_THRESHOLD_BYTES)


@contextlib.contextmanager
def trim_freed_blocks() -> Iterator[None]:
    """Return memory that is freed in this block to the system. Large blocks are returned after the
    block, too."""
    _set(M_MMAP_THRESHOLD, SMALL_BYTES)
    try:
        yield
    finally:
        release_memory()
        if room() > TIGHT_BYTES:
            # Explicit thresholds switch off glibc's automatic adjustment.
            _set(M_MMAP_THRESHOLD, WORKING_BYTES)
            _set(M_TRIM_THRESHOLD, KEPT_BYTES)


def _set(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # another C library has no mallopt
        ctypes.CDLL(None).mallopt(ctypes.c_int(option), ctypes.c_int(value))

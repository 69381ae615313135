"""Makes the C library return large freed blocks to the system.

A memory limit counts what a process has mapped. By default glibc keeps freed blocks for reuse, and
keeps more of them after larger ones. After a half was loaded tensor by tensor and quantized, the
process held four times the memory of the half.
"""

import contextlib
import ctypes
from collections.abc import Iterator

from stages.memory.shrinking import release_memory
from stages.process.budget import room

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SMALL_BYTES = 256 << 10
"""Blocks from this size on have pages of their own, which go when they go."""
WORKING_BYTES = 1 << 20
"""The same size while batches are computed. Mapping each block anew costs 7 % of the time that
computing takes at a width of 1024, and less at larger ones; but where blocks up to 32 MiB, as glibc
has it, stay, layers of unlike blocks hold twice of what lives, and nobody can say beforehand how
much."""
KEPT_BYTES = 16 << 20
"""Bytes of smaller freed blocks that are kept for later."""
TIGHT_BYTES = 1 << 30
"""Bytes of room under a limit below which even smaller blocks go on being given back, after the
block of `given_back`. Of a batch that did not fit, glibc kept 130 MiB in pieces, which the limit
went on counting, so that half of that batch, and a quarter, did not fit either."""


MOST_BYTES = 32 << 20
"""Largest of what may be kept: glibc takes no more."""


def kept() -> None:
    """Keep freed blocks for the next ones, of a process whose blocks are alike. Asking for a few
    pictures' pages anew took half of all the time that decoding them did."""
    _set(M_MMAP_THRESHOLD, MOST_BYTES)
    _set(M_TRIM_THRESHOLD, 2 * MOST_BYTES)


@contextlib.contextmanager
def given_back() -> Iterator[None]:
    """Give memory that is freed in this block back to the system, and large blocks ever after."""
    _set(M_MMAP_THRESHOLD, SMALL_BYTES)
    try:
        yield
    finally:
        release_memory()
        if room() > TIGHT_BYTES:
            # Set by hand, they follow the program no more.
            _set(M_MMAP_THRESHOLD, WORKING_BYTES)
            _set(M_TRIM_THRESHOLD, KEPT_BYTES)


def _set(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # a C library that has no such thing
        ctypes.CDLL(None).mallopt(ctypes.c_int(option), ctypes.c_int(value))

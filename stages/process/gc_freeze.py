"""Makes imports faster by pausing the garbage collector."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def gc_frozen() -> Iterator[None]:
    """Pause the garbage collector in this block. Collections take a quarter of the time of
    importing torch and the classes of a model."""
    if not gc.isenabled():  # already inside such a block
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

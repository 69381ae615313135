"""Makes imports faster by pausing the garbage collector."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def gc_frozen() -> Iterator[None]:
    """Keep what is made in this block, so that it is not looked through for garbage. Of importing
    torch and a model's classes, looking through it again and again is a quarter of the time."""
    if not gc.isenabled():  # in a block of this kind already
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

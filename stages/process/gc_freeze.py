"""Makes importing cheaper; knows nothing of what is imported."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def gc_frozen() -> Iterator[None]:
    """What is made in this block stays, so it is not looked through for garbage again and again: of
    importing torch and a model's classes, that is a quarter of the time."""
    if not gc.isenabled():  # in a block of this kind already
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

"""Keeps the fork server from asking CUDA about its cards while it imports for stages on a GPU.

Some libraries ask CUDA when they are imported. A process that has asked cannot fork stages that
use a card, so those imports are left to the stages.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator

_skipped = [False]
STAYS = [False]
"""Whether this process runs one stage after another, so that what one has loaded may be kept."""


@contextlib.contextmanager
def importing_for_forks(device: str) -> Iterator[None]:
    """Make `import_asking_cuda` do nothing in this block, if the stage computes on a GPU."""
    _skipped[0] = device != "cpu"
    try:
        yield
    finally:
        _skipped[0] = False


def import_asking_cuda(*names: str) -> None:
    """Import modules that ask CUDA about its cards, or leave it to the stage that will be
    forked."""
    if not _skipped[0]:
        for name in names:
            importlib.import_module(name)


def has_used_cuda() -> bool:
    """Return whether this process has used CUDA through torch, after which its forks cannot."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())

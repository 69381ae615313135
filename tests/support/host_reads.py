"""Counts what waits for a device: values that the host reads, and shapes that depend on data.

On a CPU a read costs nothing and nobody notices it. Tensors that a test marks as the host's own may
be read. What is computed from any other tensor counts as computed on the device.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.cpu_graph import READS, SHAPED, decomposed, indexes_by_mask
from tests.support.fake_capture import place

WAITING = (*READS, *SHAPED, "aten.multinomial")
"""Operators whose result or check has to be known before the next can start."""
VIEWS = frozenset(
    {"view", "expand", "transpose", "slice", "select", "unsqueeze", "squeeze", "t", "detach"}
    | {"alias", "permute", "as_strided", "_unsafe_view", "split", "reshape", "unfold", "narrow"}
    | {"lift_fresh", "unbind", "empty", "new_empty", "empty_like", "_reshape_alias", "movedim"}
)
"""Operators that start no kernel."""


@contextmanager
def device_waits() -> Iterator["DeviceWaits"]:
    """Count what the block does."""
    with DeviceWaits() as waits, _Functions(waits):
        yield waits


class DeviceWaits(TorchDispatchMode):
    """What was counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, str(func)
        if (out := decomposed(self, func, args, kwargs)) is not NotImplemented:
            return out
        if name.startswith(WAITING) or indexes_by_mask(name, args):
            self.reads[f"{name} at {place()}"] += 1
        elif name.split(".")[1] not in VIEWS and func.namespace != "prim":
            self.kernels[name] += 1
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """Sees tolist and numpy, which are no operators."""

    def __init__(self, waits: DeviceWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.tolist, torch.Tensor.numpy):
            self._waits.reads[f"{func.__name__} at {place()}"] += 1
        return func(*args, **(kwargs or {}))

"""Counts what waits for a device: values that the host reads, and shapes that depend on data.

On a CPU a read costs nothing and nobody notices it. Tensors that a test marks as the host's own may
be read. What is computed from any other tensor counts as computed on the device.
"""

import os
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READS = ("aten._local_scalar_dense.", "aten.is_nonzero.", "aten.item.", "aten.equal.")
SHAPED = (
    "aten.nonzero", "aten.masked_select.", "aten.unique", "aten._unique", "aten.bincount",
    "aten.repeat_interleave.Tensor", "aten.argwhere", "aten.histc", "aten.multinomial",
)  # fmt: skip
"""Operators whose result or check has to be known before the next can start."""
INDEXED = ("aten.index.", "aten.index_put", "aten._index_put", "aten._unsafe_index")
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
        # In inference mode composite operators arrive whole, and would hide what is inside them.
        if not name.startswith(READS) and func.namespace != "prim" and func._can_decompose():
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if name.startswith((*READS, *SHAPED)) or indexes_by_mask(name, args):
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


def place() -> str:
    """The innermost lines of the model and of the project."""
    found = []
    for frame in reversed(traceback.extract_stack(limit=60)):
        if "/torch/" not in frame.filename and "/tests/support/" not in frame.filename:
            short = frame.filename.split("site-packages/")[-1].removeprefix(os.getcwd() + "/")
            found.append(f"{short}:{frame.lineno}")
    return " < ".join(found[:2])


def indexes_by_mask(name: str, args: Any) -> bool:
    """Whether an operator indexes by a mask, so that its shape depends on data."""
    masks = (each for each in tree_flatten(args[1:2])[0] if torch.is_tensor(each))
    return name.startswith(INDEXED) and any(t.dtype in (torch.bool, torch.uint8) for t in masks)

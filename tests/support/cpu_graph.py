"""A CUDA graph on a CPU: records the operators of a computation with the tensors that they read and
write, and replays them on the same memory, without the Python between them.

It has what breaks programs on a card: numbers that Python read are frozen, a tensor that is bound
anew stays where it was, and inputs are read from where they lay. What waits for a card, or has a
shape that depends on data, raises as it does there. Of kernels and drivers it says nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READS = (
    "aten._local_scalar_dense", "aten.is_nonzero", "aten.item", "aten.equal",
)  # fmt: skip
"""Operators whose result Python gets."""
SHAPED = (
    "aten.nonzero", "aten.masked_select", "aten.unique", "aten._unique", "aten.bincount",
    "aten.repeat_interleave.Tensor", "aten.argwhere", "aten.histc",
)  # fmt: skip
"""Operators whose shape depends on data."""
INDEXING = ("aten.index.", "aten.index_put", "aten._index_put", "aten._unsafe_index")
MASKS = (torch.bool, torch.uint8)
CAPTURING = "CUDA error: operation not permitted when stream is capturing"
VIEW, MAKE, WRITE = "view", "make", "write"
"""Kinds of operators: one that computes nothing, makes a tensor, writes to one."""
FAULT_AFTER = 40
"""Operators after which a recording fails that is to fail."""
Call = tuple[str, Any, Any, Any, Any]
"""Kind, operator, its arguments by place and by name, and its result."""


class NotRecordable(RuntimeError):
    """A card cannot record this."""


def tensors_in(*values: Any) -> list[torch.Tensor]:
    """All tensors in nested values."""
    return [value for value in tree_flatten(values)[0] if torch.is_tensor(value)]


def decomposed(mode: TorchDispatchMode, func: Any, given: Any, named: Any) -> Any:
    """The result of a composite operator, whose parts the mode sees; NotImplemented for others. In
    inference mode composites arrive whole, and would hide what is inside."""
    if str(func).startswith(READS) or func.namespace == "prim" or not func._can_decompose():
        return NotImplemented
    with mode:
        return func.decompose(*given, **named)


def indexes_by_mask(name: str, given: Any) -> bool:
    """Whether an operator indexes by a mask, so that its shape depends on data."""
    return name.startswith(INDEXING) and any(t.dtype in MASKS for t in tensors_in(given[1]))


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: list[Call], fault: Exception | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = calls
        self._fault = fault
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """Storage that was written to and not made here → a view of it, and what was in it."""
        self.made: list[torch.Tensor] = []
        self._places: set[int] = set()
        """Storages of `made`."""

    def __torch_dispatch__(self, func: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        named, name = named or {}, str(func)
        found = decomposed(self, func, given, named)
        if found is not NotImplemented:
            return found
        if name.startswith((*READS, *SHAPED)) or indexes_by_mask(name, given):
            raise NotRecordable(f"{CAPTURING}: {name}")
        if self._fault is not None and len(self.calls) >= FAULT_AFTER:
            raise self._fault
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in schema_of(func))
        if writes:
            self._keep(_written(func, given, named))
        out = func(*given, **named)
        near = {_storage(t) for t in tensors_in(given, named)}
        made = [t for t in tensors_in(out) if t.numel()]
        new = [t for t in made if _storage(t) not in near]
        kind = WRITE if writes else VIEW if made and not new else MAKE
        self.calls.append((kind, func, given, named, out))
        self.made += new
        self._places |= {_storage(t) for t in new}
        return out

    def _keep(self, written: Iterable[torch.Tensor]) -> None:
        for tensor in written:
            place = _storage(tensor)
            if place not in self._places and place not in self.before:
                whole = _whole(tensor)
                self.before[place] = whole, whole.clone()


def schema_of(func: Any) -> Any:
    return func._schema.arguments


def _written(func: Any, given: Any, named: Any) -> Iterator[torch.Tensor]:
    """The tensors that an operator writes to."""
    for at, argument in enumerate(schema_of(func)):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = named.get(argument.name, given[at] if at < len(given) else None)
            yield from tensors_in(value)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


class CpuGraph:
    """The operators of one computation."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @contextmanager
    def recording(self, fault: Exception | None = None) -> Iterator[None]:
        """Record what is computed in the block, or raise `fault` in the midst of it. A card
        computes nothing while it records, so what was written is put back, and what was made holds
        nothing."""
        recorder = _Recorder(self.calls, fault)
        try:
            with recorder:
                yield
        finally:
            with torch.inference_mode():
                for place, was in recorder.before.values():
                    place.copy_(was)
                for tensor in recorder.made:
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 0)

    @property
    def kernels(self) -> int:
        """Operators that compute something."""
        return sum(kind != VIEW for kind, *_ in self.calls)

    def replay(self) -> None:
        """Compute everything again, from and to the same memory."""
        with torch.inference_mode():
            for kind, func, given, named, out in self.calls:
                if kind == VIEW:
                    continue
                made = func(*given, **named)
                if kind == MAKE:
                    for old, new in zip(tensors_in(out), tensors_in(made), strict=True):
                        old.copy_(new)

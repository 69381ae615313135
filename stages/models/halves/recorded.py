"""Records the passes of a vision half as CUDA graphs, one per shape, and replays them.

A clip through the vision half of a 3B model keeps an H200 busy for 4 of 52 ms: the host starts its
1,500 kernels one by one.

1. The first pass of a shape is computed as it is. A shape is that of all inputs, with the bytes of
   those that are integers: grids and masks decide which kernels run.
2. So is the second. Then it is computed once more while `_Notes` takes down what the host reads of
   the device and copies to it, and recorded while it hands that out in the same order. The
   recording is kept if a replay gives the same bits.
3. Later passes are copied to the memory of the inputs and replayed. RECORDINGS shapes are kept.
4. A half that reads its pixels on the host, for example to leave out empty pictures, cannot be
   recorded: what was read would hold for all pictures.
5. After an error, or a difference, nothing of the process is recorded or replayed any more, and the
   stage's notes have the reason. Recordings use the memory that passes leave. If it runs out, they
   are dropped, and the pass is computed again.

HostGrids keep the small integers of an encoder's input, such as grids, where the host can read
them.

An encoder's code reads grids again and again (`tolist`, `item`, `repeat_interleave`). If they are
on a GPU, each time it waits for all kernels before. A HostGrid says that it is on the GPU, and
keeps its numbers in host memory. What is computed of such tensors alone is computed there, and is
one again. It moves to the GPU when it meets other tensors, or becomes floating point: the host
might round otherwise.
"""

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial, wraps
from hashlib import sha256
from typing import Any, Final

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from artifacts.records.tensors import make_record
from stages.memory.cuda_graphs import reason_of, recording, same_bits
from stages.memory.meta_device import changed, tensors
from stages.memory.oom_retry import catch_oom, release_memory
from stages.models.half_job import RECORDINGS
from stages.models.protocols import Half

GRIDS: Final = "_penstock_grids_on_host"
"""Attribute of a half whose small integers stay on the host."""
INTEGERS: Final = ("get_vision_position_ids", "get_vision_window_index")
"""Functions of transformers that compute integers from grids, on the device of the grids."""
HOST: Final = torch.device("cpu")
SMALL: Final = 4096
"""Most numbers of an input that stays on the host."""


class HostGrid(torch.Tensor):
    """Integers in host memory that act as a tensor on another device."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor, device: torch.device) -> "HostGrid":
        grid: HostGrid = torch.Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), dtype=host.dtype, device=device
        )
        grid.host = host
        return grid

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def tolist(self) -> Any:
        return self.host.tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"HostGrid({self.host}, device={self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute on the host if all tensors are there, numbers of the host among them, and the
        result is no floating-point number or is written into host memory; else on the device."""
        given = (args, dict(kwargs or {}))
        operands = list(tensors(*given))
        device = next(tensor.device for tensor in operands if isinstance(tensor, cls))
        first = func._schema.arguments[0].alias_info
        in_place = first is not None and first.is_write and _is_on_host(args[0])
        if in_place or all(isinstance(t, cls) or (_is_on_host(t) and not t.ndim) for t in operands):
            places: list[torch.device] = []
            changed(places.append, given, torch.device)
            args, kwargs = changed(_in_host_memory, changed(lambda _: HOST, given, torch.device))
            made = func(*args, **kwargs)
            if in_place or not any(t.is_floating_point() for t in tensors(made)):
                leaves = any(place.type == "cpu" != device.type for place in places)
                return made if leaves else changed(lambda host: cls(host, device), made)
        args, kwargs = changed(HostGrid.on_device, given, cls)
        return func(*args, **kwargs)

    def on_device(self) -> torch.Tensor:
        """Return a plain tensor on the device, without waiting for it."""
        return self.host.to(self.device, non_blocking=True)


def _is_on_host(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, HostGrid) or tensor.device == HOST


def _in_host_memory(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.host if isinstance(tensor, HostGrid) else tensor.cpu()


def as_grid(value: Any, device: torch.device) -> Any:
    """Return a small tensor of integers as a HostGrid, and any other value unchanged."""
    small = (
        isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.numel() <= SMALL
    )
    return HostGrid(value, device) if small and not value.is_floating_point() else value


def without_grids(value: Any) -> Any:
    return changed(HostGrid.on_device, value, HostGrid)


def keep_grids_on_host(half: Half) -> None:
    """Have a half's small integers stay on the host, permanently, and what is computed of them by
    the functions in INTEGERS."""
    from transformers import vision_utils

    half.__dict__[GRIDS] = True
    for file in {type(module).__module__ for module in half.modules()}:
        for name in INTEGERS:
            function: Callable[..., Any] = getattr(vision_utils, name)
            if getattr(sys.modules.get(file), name, None) is function:
                setattr(sys.modules[file], name, _computed_on_host(function))


def _computed_on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that computes on the host if it is given a grid, else as before."""

    @wraps(function)
    def compute(grid: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(grid, HostGrid):
            return function(grid, *args, **kwargs)
        computed = function(grid.host, *changed(_in_host_memory, args), **kwargs)
        return changed(lambda host: HostGrid(host, grid.device), computed)

    return compute


RECORDER: Final = "_penstock_recorder"
"""Attribute of a half whose passes are recorded."""
SEEN: Final = 512
"""Maximum number of shapes that are remembered as computed once."""
READS: Final = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.item", "aten.equal")
"""Operators whose result the host reads."""
SHAPED: Final = (
    *("aten.nonzero", "aten.masked_select", "aten.unique", "aten._unique", "aten.bincount"),
    *("aten.repeat_interleave.Tensor", "aten.argwhere", "aten.histc"),
)
"""Operators whose shape depends on data."""
MASKS: Final = (torch.bool, torch.uint8)
INDEXING: Final = ("aten.index.", "aten.index_put", "aten._index_put", "aten._unsafe_index")


class NotRecordable(RuntimeError):
    """A half computes something that no recording can replay."""


class PassRecorder:
    """The recordings of one half."""

    reason = ""
    """Why the process records nothing any more; empty while it does."""
    recordings, replayed, passes = 0, 0, 0
    """Of the process."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._known: OrderedDict[Hashable, _Recording] = OrderedDict()

    def call(self, function: Callable[..., Any], shape: Any, inputs: Mapping[str, Any]) -> Any:
        """Return the output record of `function` for inputs on the device."""
        PassRecorder.passes += 1
        if known := self._known.get(shape):
            self._known.move_to_end(shape)
            if (made := self._tried(lambda: known.replay(inputs))) is not None:
                PassRecorder.replayed += 1
                return made
        if not self._known:
            made = function(inputs)
        else:
            outputs, message = catch_oom(lambda: function(inputs))
            if message is not None:
                self._stop(message)
            made = function(inputs) if message is not None else outputs[0]
        if shape in self._seen and not PassRecorder.reason:
            self._record(function, shape, inputs, made)
        self._seen[shape] = None
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        return made

    def _record(
        self, function: Callable[..., Any], shape: Any, inputs: Mapping[str, Any], expected: Any
    ) -> None:
        """Record a pass whose result is known."""
        if len(self._known) >= RECORDINGS:
            self._known.popitem(last=False)
        memory = next((known.graph.pool() for known in self._known.values()), None)

        def recorded() -> _Recording:
            candidate = _Recording(function, inputs, memory)
            made, wanted = list(tensors(candidate.replay(inputs))), list(tensors(expected))
            if len(made) != len(wanted) or not all(map(same_bits, made, wanted)):
                raise NotRecordable("a replayed pass gives other features")
            return candidate

        if (fresh := self._tried(recorded)) is not None:
            self._known[shape] = fresh
            PassRecorder.recordings += 1

    def _tried(self, compute: Callable[[], Any]) -> Any:
        """Return what is computed; None if that fails, after which nothing is recorded any more."""
        try:
            return compute()
        except Exception as error:  # a driver fails in any way
            reason = reason_of(error)
        # Only after the except block is the traceback gone, and with it what its frames held.
        self._stop(reason)
        return None

    def _stop(self, reason: str) -> None:
        """Record and replay nothing of the process any more."""
        PassRecorder.reason = reason
        self._known.clear()
        torch.cuda.synchronize()
        release_memory()

    @classmethod
    def stats(cls) -> dict[str, Any]:
        """Return the notes about the passes of the process."""
        counts = {"replayed": cls.replayed, "passes": cls.passes, "recordings": cls.recordings}
        return {"recorded": counts, **({"recorded_reason": cls.reason} if cls.reason else {})}


def shape_of(inputs: Mapping[str, Any]) -> Hashable:
    """Return what decides which kernels run on inputs in host memory: shapes and types, and the
    numbers of all that are no pixels. None if an input is no tensor."""
    if not all(isinstance(value, torch.Tensor) for value in inputs.values()):
        return None
    return tuple((name, _shape(value)) for name, value in sorted(inputs.items()))


def _shape(value: torch.Tensor) -> Hashable:
    numbers = b"" if value.is_floating_point() else value.cpu().contiguous().numpy().tobytes()
    return tuple(value.shape), value.dtype, sha256(numbers).digest()


class _Recording:
    """The recorded pass of one shape."""

    def __init__(self, function: Callable[..., Any], inputs: Mapping[str, Any], pool: Any) -> None:
        """Record a pass. Raises whatever a driver or a model raises."""
        self._inputs = {n: v.clone() if _has_pixels(v) else v for n, v in inputs.items()}
        notes = _Notes(v for v in self._inputs.values() if _has_pixels(v))
        with notes, _HostReads(notes):
            function(self._inputs)
        self._noted = list(notes.noted)
        """Also what lies at addresses that the graph reads."""
        notes.handing_out = True
        with recording(pool) as self.graph, notes, _HostReads(notes):
            self._made = function(self._inputs)

    def replay(self, inputs: Mapping[str, Any]) -> Any:
        """Return the output record for other pixels, in memory of its own."""
        for name, value in inputs.items():
            if _has_pixels(value):
                self._inputs[name].copy_(value, non_blocking=True)
        self.graph.replay()
        return make_record(
            type(self._made), tree_map_only(torch.Tensor, torch.clone, {**self._made})
        )


def _has_pixels(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


class _Notes(TorchDispatchMode):
    """Notes, in order, what a recording cannot compute, and hands it out while one is made."""

    def __init__(self, pixels: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noted: deque[tuple[str, Any]] = deque()
        self.handing_out = False
        self._of_pixels = {_memory(value) for value in pixels}
        """Memory with what was computed of pixels. A reference keeps its place from another use."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, str(func)
        if any(issubclass(kind, HostGrid) for kind in types):
            return NotImplemented  # it computes on the host, and comes back to move
        # In inference mode composite operators arrive whole, and hide what is inside.
        if func.namespace != "prim" and not name.startswith(READS) and func._can_decompose():
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        decisive = _decisive(func, args, kwargs)
        given = list(tensors(args, kwargs))
        if decisive is not None and not name.startswith(INDEXING):
            made = self.note(name, decisive, lambda: func(*args, **kwargs))
        else:
            if decisive is not None:
                placed = self.note(name, decisive, lambda: _placed(*args[:2]))
                args = (args[0], placed, *args[2:])
            made = func(*args, **kwargs)
        if self._depend(given):
            written = given if func._schema.is_mutable else ()
            self._of_pixels.update(map(_memory, (*tensors(made), *written)))
        return made

    def note(self, name: str, of: Iterable[torch.Tensor], compute: Callable[[], Any]) -> Any:
        """Return what is computed of tensors, or what was. Raises NotRecordable."""
        if not self.handing_out:
            if self._depend(of):
                raise NotRecordable(f"the host reads pixels ({name})")
            self.noted.append((name, compute()))
            return self.noted[-1][1]
        # transformers leaves out checks of its inputs while a stream captures.
        while self.noted and self.noted[0][0] != name and self.noted[0][0].startswith(READS):
            self.noted.popleft()
        if not self.noted or self.noted[0][0] != name:
            raise NotRecordable(f"a recorded pass has {name}, where the pass before had not")
        return self.noted.popleft()[1]

    def _depend(self, values: Iterable[torch.Tensor]) -> bool:
        return any(_memory(value) in self._of_pixels for value in values)


class _HostReads(TorchFunctionMode):
    """Notes lists and arrays that are made of tensors: no operator does that."""

    def __init__(self, notes: _Notes) -> None:
        super().__init__()
        self._notes = notes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        compute = partial(func, *args, **(kwargs or {}))
        if func not in (torch.Tensor.tolist, torch.Tensor.numpy):
            return compute()
        return self._notes.note(func.__name__, args[:1], compute)


def _decisive(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor] | None:
    """Return the tensors whose numbers decide what the host reads, which shape a result has, or
    what is copied between host and device; None for an operator that can be recorded."""
    name = str(func)
    if name.startswith((*READS, *SHAPED)):
        return list(tensors(args, kwargs))
    if name.startswith(INDEXING):
        tensors_given = list(tensors(args[1]))
        apart = any(one.dtype in MASKS or one.device != args[0].device for one in tensors_given)
        return tensors_given if apart else None
    copied = name.startswith("aten._to_copy") and kwargs.get("device", args[0].device)
    return [args[0]] if copied and copied != args[0].device else None


def _placed(values: torch.Tensor, indexes: Any) -> list[Any]:
    """Return indexes on the device of the values, with the places where a mask is true instead of
    the mask."""
    expanded: list[Any] = []
    for one in indexes:
        mask = isinstance(one, torch.Tensor) and one.dtype in MASKS
        expanded += one.nonzero(as_tuple=True) if mask else [one]
    return [changed(lambda index: index.to(values.device), one) for one in expanded]


def _memory(value: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(value.untyped_storage())

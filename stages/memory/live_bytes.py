"""Counts live bytes and operations in a dry run on the meta device, and skips repeated layers.

16-bit computations are counted twice: as they are, and as if in 32 bit. In 32 bit, a tensor that is
only cast is not a new tensor.

How it works:

1. The meta device reports every operation to `computed`.
2. Each new storage adds its bytes to the live bytes. A weak reference subtracts them when Python
   drops the storage. The peak is the maximum.
3. Casts of a tensor share one TensorStorage, so in 32 bit they count once.
4. Hooks call `enter` and `leave` around each MLP. They show how much of the peak is inside MLPs,
   where chunked input saves memory, and how much is outside.
5. Only the first two of a run of identical layers are computed. `measure` records how far a layer
   raises these figures above their value before it. `repeat` adds the same for an identical layer
   without computing it.

Without data, identical layers do not differ in any counted figure. A call is identified by the
layer's structure, its arguments and its part of the KV cache. Of floating-point arguments the
shapes count, of others the values. Any call that cannot be identified is computed.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import flop_registry

from artifacts.records.tensors import Tree
from stages.memory.meta_device import CAST, FUSED, META, changed, tensors

FLOAT32_BYTES = 4
"""Bytes of a 32-bit number."""

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class TensorStorage:
    """The 32-bit memory of one tensor, or of several that are casts of it."""

    size: int
    holders: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryUse:
    """Bytes and operations of a part of a computation, above their values at its start."""

    rises: tuple[tuple[int, int], ...]
    """Peak bytes before each MLP, inside each MLP, and at the end. Each comes with the bytes that
    the MLP freed when it ended, or -1."""
    rise_outside: tuple[int, int]
    """Peak bytes outside MLPs, as computed and in 32 bit."""
    rise_32: int
    """Peak bytes if all were computed in 32 bit."""
    flops: int


class MetaMemoryCounter:
    """Counts the tensors that are created from now on and still alive."""

    def __init__(self, excluded: Any = ()) -> None:
        """Start counting. Tensors in `excluded`, such as weights, are never counted."""
        self.bytes = 0
        """Live bytes."""
        self.bytes_32 = 0
        """Live bytes if all were computed in 32 bit."""
        self.peak = 0
        self.peak_32 = 0
        """Peak live bytes, as computed (`peak`) and in 32 bit."""
        self.inside = 0
        """Bytes of the peak that are freed when the MLP that reaches it has ended."""
        self.outside = 0
        self.outside_32 = 0
        """Peak live bytes outside MLPs, as computed (`outside`) and in 32 bit."""
        self.scores = 0
        """Largest matrix of scores that one fused attention avoided, in bytes: 32 bit, two
        copies."""
        self.mask = 0
        """Largest mask of one such attention, in bytes: two copies."""
        self.positions = 0
        """Most positions in one call of an MLP."""
        self._in_mlp = False
        self._before = 0
        self._base = 0
        self._rises: list[tuple[int, int]] = []
        """Rises of the layer that is being measured."""
        self.flops = 0
        """Floating-point operations so far."""
        self._known: dict[Hashable, int] = {}
        self._held: dict[int, tuple[Any, TensorStorage]] = {}
        self._excluded = {tensor.untyped_storage()._cdata for tensor in tensors(*excluded)}

    def reset_peak(self) -> None:
        """Reset the peaks to the live bytes."""
        self.peak, self.peak_32, self.inside = self.bytes, self.bytes_32, 0
        self.outside, self.outside_32, self.positions = self.bytes, self.bytes_32, 0

    def enter(self, positions: int) -> None:
        """Record that an MLP starts with so many positions."""
        self.positions = max(self.positions, positions)
        self._in_mlp = True
        self._rises.append((self.peak - self._base, -1))
        self._before = self.peak
        self.peak = self.bytes

    def leave(self) -> None:
        """Record that the MLP has ended; the live bytes include its result."""
        inside = self.peak - self.bytes
        self._rises.append((self.peak - self._base, inside))
        if self.peak > self._before:
            self.inside = inside
        self.peak = max(self.peak, self._before)
        self._in_mlp = False
        self._go_outside(self.bytes, self.bytes_32)

    def measure(self, compute: Callable[[], T]) -> tuple[T, MemoryUse]:
        """Return the result of `compute` and its memory use. Calls are not nested."""
        peak, peak_32, inside, flops = self.peak, self.peak_32, self.inside, self.flops
        outside, outside_32, positions = self.outside, self.outside_32, self.positions
        base, base_32 = self.bytes, self.bytes_32
        self._base, self._rises = base, []
        self.reset_peak()
        computed = compute()
        rises = (*self._rises, (self.peak - base, -1))
        use = MemoryUse(
            rises=rises,
            rise_outside=(self.outside - base, self.outside_32 - base_32),
            rise_32=self.peak_32 - base_32,
            flops=self.flops - flops,
        )
        self.outside, self.outside_32 = outside, outside_32
        self.positions = max(self.positions, positions)
        self.peak, self.peak_32, self.inside, self.flops = peak, peak_32, inside, flops
        self._base, self._rises = 0, []
        self._rise(use, base, base_32)
        return computed, use

    def repeat(self, use: MemoryUse, make: Callable[[], T]) -> T:
        """Return the result of `make`, counted with the memory use of an identical layer."""
        self._rise(use, self.bytes, self.bytes_32)
        before = self.peak, self.peak_32, self.outside, self.outside_32
        made = make()
        self.peak, self.peak_32, self.outside, self.outside_32 = before
        return made

    def _rise(self, use: MemoryUse, base: int, base_32: int) -> None:
        for rise, inside in use.rises:
            if inside >= 0 and base + rise > self.peak:
                self.inside = inside
            self.peak = max(self.peak, base + rise)
        outside, outside_32 = use.rise_outside
        self._go_outside(base + outside, base_32 + outside_32)
        self.peak_32 = max(self.peak_32, base_32 + use.rise_32)
        self.flops += use.flops

    def hold(self, *values: Tree) -> None:
        """Count tensors that existed before."""
        for tensor in tensors(*values):
            self._count(tensor)

    def computed(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Count the outputs, operations and attention scores of one operation."""
        if func is FUSED:
            query, key, mask = args[0], args[1], kwargs.get("attn_mask")
            pairs = query.shape[:-1].numel() * key.shape[-2]
            self.scores = max(self.scores, 2 * FLOAT32_BYTES * pairs)
            if mask is not None:
                self.mask = max(self.mask, 2 * mask.numel() * mask.element_size())
        if isinstance(out, torch.Tensor):
            self._count(out, args[0] if func is CAST else None)
        else:
            self.hold(out)
        if func._overloadpacket in flop_registry:
            self.flops += self._flops(func, args, kwargs, out)

    def _flops(self, func: Any, args: Any, kwargs: Any, out: Any) -> int:
        key = (func, *(tensor.shape for tensor in tensors(args, kwargs)))
        if key not in self._known:
            self._known[key] = int(
                flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
            )
        return self._known[key]

    def _count(self, tensor: torch.Tensor, cast_of: torch.Tensor | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held or key in self._excluded:
            return
        size = storage.nbytes()
        block = self._block(tensor, size, cast_of)
        if not block.holders:
            self.bytes_32 += block.size
        block.holders += 1

        def gone(_: Any) -> None:
            self.bytes -= size
            block.holders -= 1
            if not block.holders:
                self.bytes_32 -= block.size
            del self._held[key]

        self._held[key] = (weakref.ref(storage, gone), block)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        self.peak_32 = max(self.peak_32, self.bytes_32)
        if not self._in_mlp:
            self._go_outside(self.bytes, self.bytes_32)

    def _go_outside(self, size: int, size_32: int) -> None:
        self.outside = max(self.outside, size)
        self.outside_32 = max(self.outside_32, size_32)

    def _block(
        self, tensor: torch.Tensor, size: int, cast_of: torch.Tensor | None
    ) -> TensorStorage:
        if cast_of is not None and tensor.is_floating_point() and cast_of.is_floating_point():
            held = self._held.get(cast_of.untyped_storage()._cdata)
            if held is not None:
                return held[1]
        return TensorStorage(size=_size_32(tensor, size))


def _size_32(tensor: torch.Tensor, size: int) -> int:
    """Return the bytes of a tensor of `size` bytes if it were of 32 bit."""
    if not tensor.is_floating_point():
        return size
    return size * FLOAT32_BYTES // min(FLOAT32_BYTES, tensor.element_size())


MIN_LAYERS = 4
"""Fewest layers in a list for which skipping pays off."""
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)
INDEX_ATTRIBUTE = "layer_idx"
"""Attribute with the index of a layer in the cache."""


class UnidentifiedValue(Exception):
    """Raised for a value that cannot be compared reliably."""


class Form(NamedTuple):
    """A tensor without data, and its view of a storage."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    numbers: int
    """Elements of the storage."""


@dataclass(kw_only=True, slots=True)
class Call:
    """The latest recorded call of its kind."""

    use: MemoryUse
    made: Any
    """The forms of its results."""
    place: Any
    """The forms of its part of the cache after the call."""
    confirmed: bool = False
    """Whether two calls in a row were equal."""


@dataclass(kw_only=True, slots=True)
class RepeatedLayers:
    """The recorded calls of one model's layers."""

    found: list[tuple[nn.Module, int]] = field(default_factory=list)
    """The layers, each with the number of its kind."""
    calls: dict[Hashable, Call] = field(default_factory=dict)

    @contextlib.contextmanager
    def layers(self, model: nn.Module, live: MetaMemoryCounter) -> Iterator[None]:
        """Within this block, compute the layers of `model` only until their memory use is known."""
        if not self.found:
            kinds: dict[Hashable, int] = {}
            self.found = [(one, kinds.setdefault(k, len(kinds))) for one, k in _layers(model)]
        for layer, kind in self.found:
            self._replace(layer, kind, layer.forward, live)
        try:
            yield
        finally:
            for layer, _ in self.found:
                del layer.__dict__["forward"]

    def _replace(
        self, layer: nn.Module, kind: int, forward: Callable[..., Any], live: MetaMemoryCounter
    ) -> None:
        @functools.wraps(forward)
        def answered(*args: Any, **kwargs: Any) -> Any:
            return self._run_layer(layer, kind, functools.partial(forward, *args, **kwargs), live)

        layer.__dict__["forward"] = answered

    def _run_layer(self, layer: Any, kind: Any, compute: Any, live: MetaMemoryCounter) -> Any:
        caches: list[Any] = []
        try:
            with _disable_current_modes():
                inputs = _known((compute.args, compute.keywords), caches)
                place = _place(layer, caches)
                key = (kind, inputs, _known(vars(place), []) if place is not None else None)
        except UnidentifiedValue:
            return compute()
        known = self.calls.get(key)
        if known is not None and known.confirmed:
            return live.repeat(known.use, lambda: _repeated(known, place, live))
        held = _sizes(vars(place)) if place is not None else (0, 0)
        before = live.bytes - held[0], live.bytes_32 - held[1]
        outputs, use = live.measure(compute)
        with _disable_current_modes(), contextlib.suppress(UnidentifiedValue):
            after = vars(place) if place is not None else {}
            if inputs != _known((compute.args, compute.keywords), []):
                raise UnidentifiedValue
            grown = [a + b for a, b in zip(_sizes(outputs), _sizes(after), strict=True)]
            if grown != [live.bytes - before[0], live.bytes_32 - before[1]]:
                raise UnidentifiedValue  # it holds other tensors, or returns its input
            call = Call(use=use, made=_form(outputs), place=_form(after))
            same = known is not None and (known.use, known.made) == (call.use, call.made)
            call.confirmed = same and repr(known and known.place) == repr(call.place)
            self.calls[key] = call
        return outputs


def _repeated(call: Call, place: Any, live: MetaMemoryCounter) -> Any:
    with _disable_current_modes():
        if place is not None:
            vars(place).update(_made(call.place))
            live.hold(*vars(place).values())
        outputs = _made(call.made)
        live.hold(outputs)
        return outputs


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, Hashable]]:
    """Yield the layers in outermost lists of layers, each with its kind."""
    for child in model.children():
        if isinstance(child, nn.ModuleList) and len(child) >= MIN_LAYERS:
            for layer in child:
                with contextlib.suppress(UnidentifiedValue):
                    if "forward" not in vars(layer):
                        yield layer, _kind(layer, len(child))
        else:
            yield from _layers(child)


def _kind(layer: nn.Module, count: int) -> Hashable:
    """Return everything that makes a layer compute differently from its neighbour."""
    parts = []
    for name, module in layer.named_modules():
        own = {**module._parameters, **module._buffers}
        weights = [(n, t.shape, t.dtype) for n, t in own.items() if t is not None]
        plain = [
            (n, v) for n, v in vars(module).items() if isinstance(v, PLAIN) and n != INDEX_ATTRIBUTE
        ]
        at = getattr(module, INDEX_ATTRIBUTE, None)
        config = getattr(module, "config", None)
        lists = vars(config).items() if config is not None else ()
        stated = [
            (n, repr(v[at]))
            for n, v in lists
            if at is not None and isinstance(v, list | tuple) and len(v) == count
        ]
        parts.append((name, type(module), *weights, *plain, *stated, id(config)))
    return tuple(parts)


def _place(layer: nn.Module, caches: list[Any]) -> Any:
    """Return the layer's part of the given KV cache."""
    if not caches:
        return None
    places = {
        getattr(module, INDEX_ATTRIBUTE)
        for module in layer.modules()
        if hasattr(module, INDEX_ATTRIBUTE)
    }
    at = next(iter(places), None)
    if len(caches) > 1 or len(places) != 1 or at is None or at >= len(caches[0].layers):
        raise UnidentifiedValue
    return caches[0].layers[at]


def _known(value: Any, caches: list[Any]) -> Any:
    """Return a hashable form that identifies an argument. Caches are appended to `caches`."""
    if isinstance(value, torch.Tensor):
        if value.is_meta or value.is_floating_point():
            return value.shape, value.stride(), value.dtype, value.is_meta
        return value.shape, value.dtype, value.contiguous().numpy().tobytes()
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, list | tuple):
        return type(value), *(_known(part, caches) for part in value)
    if isinstance(value, dict):
        return tuple((name, _known(part, caches)) for name, part in value.items())
    if isinstance(getattr(value, "layers", None), list) and not hasattr(value, "is_updated"):
        caches.append(value)
        return type(value)
    raise UnidentifiedValue


def _form(value: Any) -> Any:
    """Return what is needed to recreate a call's result."""
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            raise UnidentifiedValue
        numbers = value.untyped_storage().nbytes() // value.element_size()
        offset = int(value.storage_offset())
        return Form(value.shape, value.stride(), offset, value.dtype, numbers)
    if type(value) in (list, tuple):
        return type(value)(_form(part) for part in value)
    if type(value) is dict:
        return {name: _form(part) for name, part in value.items()}
    if isinstance(value, PLAIN):
        return value
    raise UnidentifiedValue


def _made(form: Any) -> Any:
    return changed(_empty, form, Form)


def _empty(form: Form) -> torch.Tensor:
    storage = torch.empty(form.numbers, dtype=form.dtype, device=META)
    return storage.as_strided(form.shape, form.stride, form.offset)


def _sizes(value: Any) -> tuple[int, int]:
    """Return the bytes of the tensors inside a value, as they are and in 32 bit."""
    size = size_32 = 0
    for tensor in tensors(value):
        held = tensor.untyped_storage().nbytes()
        size += held
        size_32 += _size_32(tensor, held)
    return size, size_32

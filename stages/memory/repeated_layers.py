"""Skips repeated layers in a dry run: only the first two of a run of identical layers are computed.

Without data, identical layers do not differ in any counted figure. A call is identified by the
layer's structure, its arguments and its part of the KV cache. Of floating-point arguments the
shapes count, of others the values. Any call that cannot be identified is computed.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from stages.memory.live_bytes import FLOAT32_BYTES, MemoryUse, MetaMemoryCounter
from stages.memory.meta_tensors import META, changed, tensors

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

    found: list[tuple[Any, Any]] = field(default_factory=list)
    """The layers, each with the number of its kind."""
    calls: dict[Any, Call] = field(default_factory=dict)

    @contextlib.contextmanager
    def layers(self, model: nn.Module, live: MetaMemoryCounter) -> Iterator[None]:
        """Within this block, compute the layers of `model` only until their memory use is known."""
        if not self.found:
            kinds: dict[Any, int] = {}
            self.found = [(one, kinds.setdefault(k, len(kinds))) for one, k in _layers(model)]
        for layer, kind in self.found:
            self._replace(layer, kind, layer.forward, live)
        try:
            yield
        finally:
            for layer, _ in self.found:
                del layer.__dict__["forward"]

    def _replace(
        self, layer: Any, kind: Any, forward: Callable[..., Any], live: MetaMemoryCounter
    ) -> None:
        @functools.wraps(forward)
        def answered(*args: Any, **kwargs: Any) -> Any:
            return self._run_layer(layer, kind, functools.partial(forward, *args, **kwargs), live)

        layer.__dict__["forward"] = answered

    def _run_layer(self, layer: Any, kind: Any, compute: Any, live: MetaMemoryCounter) -> Any:
        caches: list[Any] = []
        try:
            with _disable_current_modes():
                given = _known((compute.args, compute.keywords), caches)
                place = _place(layer, caches)
                key = (kind, given, _known(vars(place), []) if place is not None else None)
        except UnidentifiedValue:
            return compute()
        known = self.calls.get(key)
        if known is not None and known.confirmed:
            return live.repeat(known.use, lambda: _repeated(known, place, live))
        held = _sizes(vars(place)) if place is not None else (0, 0)
        before = live.bytes - held[0], live.bytes_32 - held[1]
        made, use = live.measure(compute)
        with _disable_current_modes(), contextlib.suppress(UnidentifiedValue):
            after = vars(place) if place is not None else {}
            if given != _known((compute.args, compute.keywords), []):
                raise UnidentifiedValue
            grown = [a + b for a, b in zip(_sizes(made), _sizes(after), strict=True)]
            if grown != [live.bytes - before[0], live.bytes_32 - before[1]]:
                raise UnidentifiedValue  # it holds other tensors, or returns its input
            call = Call(use=use, made=_form(made), place=_form(after))
            same = known is not None and (known.use, known.made) == (call.use, call.made)
            call.confirmed = same and repr(known and known.place) == repr(call.place)
            self.calls[key] = call
        return made


def _repeated(call: Call, place: Any, live: MetaMemoryCounter) -> Any:
    with _disable_current_modes():
        if place is not None:
            vars(place).update(_made(call.place))
            live.hold(*vars(place).values())
        made = _made(call.made)
        live.hold(made)
        return made


def _layers(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Yield the layers in lists of layers, each with its kind. Lists inside other lists are left
    out."""
    for child in model.children():
        if isinstance(child, nn.ModuleList) and len(child) >= MIN_LAYERS:
            for layer in child:
                with contextlib.suppress(UnidentifiedValue):
                    if "forward" not in vars(layer):
                        yield layer, _kind(layer, len(child))
        else:
            yield from _layers(child)


def _kind(layer: nn.Module, count: int) -> Any:
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
    whole = torch.empty(form.numbers, dtype=form.dtype, device=META)
    return whole.as_strided(form.shape, form.stride, form.offset)


def _sizes(value: Any) -> tuple[int, int]:
    """Return the bytes of the tensors inside a value, as they are and in 32 bit."""
    size = whole = 0
    for tensor in tensors(value):
        held = tensor.untyped_storage().nbytes()
        size += held
        floats = tensor.is_floating_point()
        whole += (
            held * FLOAT32_BYTES // min(FLOAT32_BYTES, tensor.element_size()) if floats else held
        )
    return size, whole

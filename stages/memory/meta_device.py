"""Runs a model on tensors without data, with its real control flow.

Floating-point tensors are on the meta device. Integers and booleans (ids, grids, masks) are real
and on the CPU, because their values decide shapes. The same holds for small floating-point tensors
made from Python numbers. An operation on both kinds runs without data, and its integer results are
zeros.
"""

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from artifacts.records.tensors import Tree


def tensors(*values: Tree) -> Iterator[torch.Tensor]:
    """Yield all tensors inside these values."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(*value)
        elif isinstance(value, dict):
            yield from tensors(*value.values())


def changed(function: Callable[[Any], Any], value: Any, kind: type[Any] = torch.Tensor) -> Any:
    """Return the value with everything of class `kind` inside it replaced by `function` of it."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(changed(function, part, kind) for part in value)
    if isinstance(value, dict):
        return {name: changed(function, part, kind) for name, part in value.items()}
    return value


Computed: TypeAlias = Callable[[Any, Any, Any, Any], None]
META = torch.device("meta")
IN_PLACE = object()
OUTLINES: dict[Hashable, Any] = {}
"""Signatures of arguments → signatures of results. Layers repeat, and torch takes five times as
long."""


class TensorSignature(NamedTuple):
    """A tensor's metadata without its data."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def outline(value: Tree) -> Hashable:
    """Return a hashable signature of everything that decides the output shapes of an operator."""
    if isinstance(value, torch.Tensor):
        return TensorSignature(value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(outline(part) for part in value)
    return value


def _empty(outlined: TensorSignature) -> torch.Tensor:
    shape, stride, dtype = outlined
    if dtype.is_floating_point or dtype.is_complex:
        return torch.empty_strided(shape, stride, dtype=dtype, device=META)
    return torch.zeros(shape, dtype=dtype)


aten: Any = torch.ops.aten
SMALL = 1 << 14
"""Most elements of a floating-point tensor that is computed with data."""
CAST = aten._to_copy.default
SDPA = aten.scaled_dot_product_attention.default
FUSED = aten._scaled_dot_product_flash_attention_for_cpu.default
MATH_ATTENTION = aten._scaled_dot_product_attention_math.default
SHAPES = frozenset(
    op
    for name in ("ones_like", "zeros_like", "full_like", "empty_like", "new_ones", "new_zeros")
    for op in (getattr(aten, name).default,)
) | {aten.new_full.default, aten.new_empty.default}
"""Operators that use only the shape or type of their tensor."""
FROM_NUMBERS = frozenset({torch.tensor, torch.as_tensor, torch.asarray})


def without_data(value: Any) -> Any:
    """Return the value with all its floating-point tensors, in any nesting, on the meta device."""
    return changed(lambda tensor: _on_meta(tensor) if tensor.is_floating_point() else tensor, value)


class MetaDevice(TorchDispatchMode):
    """A torch mode that runs every operation without data if no data is needed, and passes
    operator, arguments and output to `computed`."""

    def __init__(self, computed: Computed) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._computed = computed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is SDPA:
            func, args, kwargs = _fused(*args, **kwargs)
        given = list(tensors(args, kwargs))
        if _is_composed(func) and func not in REPLACEMENTS:
            with self:
                made = func.decompose(*args, **kwargs)
            return made[0] if func is MATH_ATTENTION else made
        if func is CAST:
            out = _move(func, args, kwargs)
        elif func in REPLACEMENTS and (
            func in WITHOUT_INTEGER_KERNEL or any(t.is_meta for t in given)
        ):
            out = REPLACEMENTS[func](func, args, kwargs)
        elif not given:
            out = _make(func, args, kwargs)
        elif any(t.is_meta for t in given):
            out = _mixed(func, args, kwargs)
        else:
            out = _real(func, args, kwargs)
        self._computed(func, args, kwargs, out)
        return out[0] if func is FUSED else out


@functools.cache
def _is_composed(func: torch._ops.OpOverload) -> bool:
    """Return whether an operator decomposes into others on every device."""
    composite = "CompositeImplicitAutograd"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite))


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_meta else tensor.to(META)


def _with_data(tensor: torch.Tensor) -> torch.Tensor:
    """Return zeros for an integer tensor that was computed without data."""
    if not tensor.is_meta or tensor.is_floating_point() or tensor.is_complex():
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _move(func: Any, args: Any, kwargs: Any) -> Any:
    """Cast a tensor to another type, and ignore a change of device."""
    kwargs = {name: value for name, value in kwargs.items() if name != "device"}
    source = args[0]
    if kwargs.get("dtype", source.dtype) == source.dtype and "memory_format" not in kwargs:
        return aten.alias.default(source)
    if source.is_meta:
        return _with_data(func(*args, **kwargs))
    return _drop_large_data(func(*args, **kwargs))


def _make(func: Any, args: Any, kwargs: Any) -> Any:
    """Create a tensor from numbers. A large floating-point tensor gets no data."""
    if torch.device(kwargs.get("device") or "cpu") != META:
        return func(*args, **kwargs)
    created = func(*args, **kwargs)
    if created.is_floating_point() and created.numel() > SMALL:
        return created
    return func(*args, **{**kwargs, "device": "cpu"})


def _real(func: Any, args: Any, kwargs: Any) -> Any:
    if kwargs.get("device") == META:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*args, **kwargs)
    return _drop_large_data(out) if isinstance(out, torch.Tensor) and not func.is_view else out


def _drop_large_data(made: torch.Tensor) -> torch.Tensor:
    """Drop a floating-point tensor's data if it is large."""
    large = made.is_floating_point() and made.numel() > SMALL
    return torch.empty_like(made, device=META) if large else made


def _mixed(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute without data. A tensor that is changed in place is returned itself."""
    if func in SHAPES:
        return _shaped(func, args, kwargs)
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": META}
    try:
        key = (func, outline(args), outline(tuple(kwargs.items())))
        known = OUTLINES.get(key)
    except TypeError:  # an argument without a hash
        key, known = None, None
    if known is not None:
        return args[0] if known is IN_PLACE else changed(_empty, known, TensorSignature)
    out = func(*changed(_on_meta, args), **changed(_on_meta, kwargs))
    schema = func._schema
    if schema.is_mutable and not isinstance(out, list | tuple):
        OUTLINES[key] = IN_PLACE if schema.arguments[0].is_write else None
        return args[0] if schema.arguments[0].is_write else out
    outputs = list(tensors(out))
    storages = {t.untyped_storage()._cdata for t in tensors(args, kwargs) if t.is_meta}
    if key is not None and not any(t.untyped_storage()._cdata in storages for t in outputs):
        OUTLINES[key] = outline(out)
    return changed(_with_data, out)


def _shaped(func: Any, args: Any, kwargs: Any) -> Any:
    shaped = func(*args, **{**kwargs, "device": META})
    if shaped.is_floating_point() and shaped.numel() > SMALL:
        return shaped
    like = torch.zeros((), dtype=args[0].dtype).expand(args[0].shape)
    return func(like, *args[1:], **{**kwargs, "device": "cpu"})


def _index(func: Any, args: Any, kwargs: Any) -> Any:
    """Replace boolean masks by the indexes of their true elements, so that the shape is known."""
    indices: list[Any] = []
    for index in args[1]:
        masks = index is not None and index.dtype in (torch.bool, torch.uint8)
        indices += list(index.nonzero().unbind(1)) if masks else [index]
    return _mixed(func, (args[0], indices, *args[2:]), kwargs)


def _masked_select(func: Any, args: Any, kwargs: Any) -> Any:
    count = int(torch.as_tensor(args[1]).sum())
    return _with_data(torch.empty(count, dtype=args[0].dtype, device=META))


REPLACEMENTS: dict[Any, Callable[[Any, Any, Any], Any]] = {
    aten.index.Tensor: _index,
    aten.index_put_.default: _index,
    aten.index_put.default: _index,
    aten.masked_select.default: _masked_select,
    aten._local_scalar_dense.default: lambda func, args, kwargs: 1.0,
    aten.item.default: lambda func, args, kwargs: 1.0,
    aten.histc.default: lambda func, args, kwargs: torch.histc(args[0].float(), *args[1:]),
    aten.is_nonzero.default: lambda func, args, kwargs: True,
    aten.equal.default: lambda func, args, kwargs: True,
}
"""Operators whose result depends on missing data → their replacements."""
WITHOUT_INTEGER_KERNEL = frozenset({aten.histc.default})
"""Operators that the CPU does not support for integers."""


class Numbers(TorchFunctionMode):
    """A mode that catches tensors made from Python numbers before they become operators, because
    operators do not expose the numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FROM_NUMBERS and torch.device(kwargs.get("device") or "cpu") == META:
            return func(*args, **{**kwargs, "device": "cpu"})
        if func is torch.Tensor.item and args[0].is_meta:
            return 1.0
        return func(*args, **kwargs)


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Select fused attention, without the matrix of all weights, if the shapes allow it."""
    fits = query.ndim == 4 and query.shape[-1] == key.shape[-1] == value.shape[-1]
    if not (fits and query.is_meta):
        arguments = (query, key, value, attn_mask, dropout_p, is_causal)
        return MATH_ATTENTION, arguments, {"scale": scale, "enable_gqa": enable_gqa}
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=META)
    return FUSED, (query, key, value, 0.0, is_causal), {"attn_mask": attn_mask, "scale": scale}


def give_data(model: torch.nn.Module) -> None:
    """Give real zeros to the integer buffers of a model without storage."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _with_data(buffer)


@contextmanager
def on_meta_device(computed: Computed) -> Iterator[None]:
    """Compute this block without data, and report each operation to `computed`."""
    with torch.inference_mode(), Numbers(), MetaDevice(computed):
        yield

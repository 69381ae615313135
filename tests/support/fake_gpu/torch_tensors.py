"""Tensors "on" a card that is not there: `cuda:N` is the CPU wherever torch is given a device.

What is made there is given only if the card has room for it, and is really taken from the host, so
that what is held can be seen. Nothing tells a tensor on the card from one beside it.
"""

import copyreg
import mmap
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._device import _device_constructors

from tests.support.fake_gpu.holding import holding
from tests.support.fake_gpu.state import log

GARBAGE = 0x5A
"""What memory is full of that nobody has written to: nobody should take it for zeros."""
CPU = torch.device("cpu")
real_device = torch.device
SIZED = ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "arange", "linspace", "eye")
LIKE = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
OF_DATA = ("tensor", "as_tensor", "asarray", "scalar_tensor", "new_tensor")
METHODS = ("new_empty", "new_zeros", "new_ones", "new_full")
FUNCTIONS = {"linear": "gemm", "conv1d": "conv", "conv2d": "conv", "conv3d": "conv"}
"""Of torch.nn.functional, that begin with a kernel of a kind."""
PRODUCTS = ("matmul", "mm", "bmm", "addmm")


def on_card(place: Any) -> int | None:
    """The number of the card that a device stands for; None if it stands for none."""
    if isinstance(place, str) and place.partition(":")[0] == "cuda":
        return int(place.partition(":")[2] or 0)
    if type(place) is int:
        return place
    return None


class DeviceType(type):
    """So that `torch.device` is still a class, of which real devices are instances."""

    def __instancecheck__(cls, thing: object) -> bool:
        return type(thing) is real_device

    def __call__(cls, *given: Any, **named: Any) -> torch.device:
        kind = given[0] if given else named.get("type", named.get("device"))
        return CPU if on_card(kind) is not None else real_device(*given, **named)


class Device(metaclass=DeviceType):
    """In the place of `torch.device`, where whoever unpickles a device looks for it."""

    __module__, __qualname__ = "torch", "device"


def _reduced(device: torch.device) -> tuple[Callable[..., torch.device], tuple[str]]:
    return cast(Any, Device), (str(device),)


def arrive(place: Any, size: int = 0) -> Any:
    """Where a tensor of so many bytes really goes. Raises what torch would if it cannot."""
    index = on_card(place)
    if index is None:
        return place
    holding.ask(size, index)
    return "cpu"


def patch_tensors() -> None:
    """Change torch for this process."""
    _device_constructors()  # remembers what it finds, which has to be the real ones
    for place in (torch, torch.Tensor):
        for name in (*SIZED, "empty_strided", *LIKE, *OF_DATA, *METHODS):
            if real := getattr(place, name, None):
                setattr(place, name, _maker(real, name))
    torch.device = Device  # type: ignore[misc, assignment]
    copyreg.pickle(real_device, _reduced)
    _patch_moves()
    holding.on_context.append(_watch_modules)


def _maker(real: Callable[..., Any], name: str) -> Callable[..., Any]:
    def make(*given: Any, **named: Any) -> Any:
        if named.pop("pin_memory", False):
            holding.use()
            log("pin", name)
            return pinned_copy(real(*given, **named))
        place = named.get("device")
        if on_card(place) is None:
            return real(*given, **named)
        size = 0 if name in OF_DATA else _size(real, given, named)
        return _taken(real(*given, **{**named, "device": arrive(place, size)}), name)

    make.__name__ = name
    return make


def pinned_copy(made: torch.Tensor) -> torch.Tensor:
    """Copy a tensor into shared memory, which does not count as the card's."""
    if not made.nbytes:
        return made
    shared = torch.frombuffer(mmap.mmap(-1, made.nbytes), dtype=made.dtype)
    return shared.view(made.shape).copy_(made)


def _size(real: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> int:
    """Bytes that a call would make."""
    kept = {key: value for key, value in named.items() if key not in ("generator", "out")}
    return int(real(*given, **{**kept, "device": "meta"}).nbytes)


def _taken(made: torch.Tensor, name: str) -> torch.Tensor:
    """Touch memory that the kernel would give only when it is written to."""
    if type(made) is torch.Tensor and made.device == CPU and "out" not in name:
        if "empty" in name:
            made.new_empty(0, dtype=torch.uint8).set_(made.untyped_storage()).fill_(GARBAGE)
        elif "zeros" in name:
            made.zero_()
    return made


def _patch_moves() -> None:
    tensor_to, module_to = torch.Tensor.to, torch.nn.Module.to

    def moved(self: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        return tensor_to(self, *_places(given), **_place(named))

    def module_moved(self: torch.nn.Module, *given: Any, **named: Any) -> torch.nn.Module:
        return module_to(self, *_places(given), **_place(named))

    def to_card(self: Any, device: Any = None, *_: Any, **__: Any) -> Any:
        arrive(0 if device is None else device)
        return self

    def pinned(self: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        holding.use()
        log("pin", "pin_memory")
        return pinned_copy(self)

    patches: dict[Any, dict[str, Any]] = {
        torch.Tensor: {
            "to": moved,
            "cuda": to_card,
            "pin_memory": pinned,
            "record_stream": lambda *_: None,
        },
        torch.nn.Module: {"to": module_moved, "cuda": to_card},
    }
    for place, functions in patches.items():
        for name, function in functions.items():
            setattr(place, name, function)


def _places(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The device is the first, if there is one among them."""
    return (arrive(given[0]), *given[1:]) if given else given


def _place(named: dict[str, Any]) -> dict[str, Any]:
    return {**named, "device": arrive(named["device"])} if "device" in named else named


def _watch_modules() -> None:
    """From the first context on, look at the card after each module, and load kernels lazily."""
    register_module_forward_hook(lambda *_: holding.look())
    for name, kind in FUNCTIONS.items():
        _note_first(torch.nn.functional, name, kind)
    for name in PRODUCTS:
        _note_first(torch, name, "gemm")
    for name in ("__matmul__", *PRODUCTS):
        _note_first(torch.Tensor, name, "gemm")


def _note_first(place: Any, name: str, kind: str) -> None:
    real = getattr(place, name)

    def noted(*given: Any, **named: Any) -> Any:
        holding.first_kernel(kind, getattr(given[0] if given else None, "dtype", None))
        return real(*given, **named)

    noted.__name__ = name
    setattr(place, name, noted)

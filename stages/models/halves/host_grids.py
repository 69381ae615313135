"""Keeps the small integers of an encoder's input, such as grids, where the host can read them.

An encoder's code reads grids again and again (`tolist`, `item`, `repeat_interleave`). If they are
on a GPU, each time it waits for all kernels before. A HostGrid says that it is on the GPU, and
keeps its numbers in host memory. What is computed of such tensors alone is computed there, and is
one again. It moves to the GPU when it meets other tensors, or becomes floating point: the host
might round otherwise.
"""

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Final

import torch

from stages.memory.meta_device import changed, tensors

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
        made: HostGrid = torch.Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), dtype=host.dtype, device=device
        )
        made.host = host
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def tolist(self) -> Any:
        return self.host.tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"HostGrid({self.host}, device={self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute on the host if all tensors are there and the result is no floating-point number,
        else on the device."""
        given = (args, dict(kwargs or {}))
        found = list(tensors(*given))
        device = next(tensor.device for tensor in found if isinstance(tensor, cls))
        in_place = func._schema.is_mutable and isinstance(args[0], cls)
        if in_place or all(isinstance(tensor, cls) for tensor in found):
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


def _in_host_memory(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.host if isinstance(tensor, HostGrid) else tensor.cpu()


def as_grid(value: Any, device: torch.device) -> Any:
    """Return a small tensor of integers as a HostGrid, and any other value unchanged."""
    small = (
        isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.numel() <= SMALL
    )
    return HostGrid(value, device) if small and not value.is_floating_point() else value


def without_grids(value: Any) -> Any:
    """Return the value with plain tensors in place of its grids."""
    return changed(HostGrid.on_device, value, HostGrid)


def keep_grids_on_host(half: Any) -> None:
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
        made = function(grid.host, *changed(_in_host_memory, args), **kwargs)
        return changed(lambda host: HostGrid(host, grid.device), made)

    return compute

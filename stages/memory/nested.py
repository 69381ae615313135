"""Tensors inside any nesting of lists, tuples and dicts: told, or changed one by one."""

from collections.abc import Callable, Iterator
from typing import Any

import torch


def tensors(*values: Any) -> Iterator[torch.Tensor]:
    """All tensors inside these values."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(*value)
        elif isinstance(value, dict):
            yield from tensors(*value.values())


def changed(function: Callable[[Any], Any], value: Any, kind: type[Any] = torch.Tensor) -> Any:
    """The value with what the function makes of everything of a kind that is inside."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(changed(function, part, kind) for part in value)
    if isinstance(value, dict):
        return {name: changed(function, part, kind) for name, part in value.items()}
    return value

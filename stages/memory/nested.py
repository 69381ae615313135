"""Tells or changes the tensors inside any nesting of lists, tuples and dicts."""

from collections.abc import Callable, Iterator
from typing import Any

import torch


def tensors(*values: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors inside these values."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(*value)
        elif isinstance(value, dict):
            yield from tensors(*value.values())


def changed(function: Callable[[Any], Any], value: Any, kind: type[Any] = torch.Tensor) -> Any:
    """Return the value with everything of a kind inside it replaced by what the function makes of
    it."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(changed(function, part, kind) for part in value)
    if isinstance(value, dict):
        return {name: changed(function, part, kind) for name, part in value.items()}
    return value

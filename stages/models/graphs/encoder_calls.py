"""Finds the encoders of a half: the largest modules that it calls to make its features.

They are found by running the half. An encoder's inputs and outputs are those of a module call,
which a graph can replace. Everything before and after stays the model's own code: grids, the
selection of features and their order.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderCall:
    """One call of an encoder."""

    path: str
    """Path of the encoder in the half."""
    given: dict[str, Any]
    """Arguments by name."""


class WatchedRun(NamedTuple):
    """The result of a function, and the encoder calls that produced it."""

    made: Any
    calls: list[EncoderCall]


def encoder_calls(half: nn.Module, function: Callable[[], Any]) -> WatchedRun:
    """Run `function` and return its result with the encoder calls, in order. Encoders are the
    outermost models in the half that are called; if none is called, the outermost modules."""
    from transformers import PreTrainedModel

    named = ((path, module) for path, module in half.named_modules() if path)
    weighed = {path: module for path, module in named if [*module.parameters()]}
    models: dict[str, nn.Module] = {
        path: m for path, m in weighed.items() if isinstance(m, PreTrainedModel)
    }
    watched = _watched(models, function)
    return watched if watched.calls else _watched(weighed, function)


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a module call by name."""
    signature = inspect.signature(type(module).forward)
    given = dict(signature.bind_partial(module, *args, **kwargs).arguments)
    more = [n for n, p in signature.parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD]
    extra = {} if not more else given.pop(more[0], {})
    return {**dict(list(given.items())[1:]), **extra}


def _watched(modules: dict[str, nn.Module], function: Callable[[], Any]) -> WatchedRun:
    calls: list[EncoderCall] = []
    depth = 0

    def enter(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal depth
        if not depth:
            given = {n: copied(v) for n, v in bound(module, args, kwargs).items()}
            calls.append(EncoderCall(path=path, given=given))
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    with contextlib.ExitStack() as hooks:
        for path, module in modules.items():
            hooks.enter_context(_hooked(module, path, enter, leave))
        return WatchedRun(function(), calls)


@contextlib.contextmanager
def _hooked(
    module: nn.Module, path: str, enter: Callable[..., None], leave: Callable[..., None]
) -> Iterator[None]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        enter(path, module, args, kwargs)

    first = module.register_forward_pre_hook(before, with_kwargs=True)
    last = module.register_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        first.remove()
        last.remove()


def copied(value: Any) -> Any:
    """Return a value whose tensors are copies: some models change their inputs in place."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, list | tuple):
        return type(value)(copied(part) for part in value)
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    return value

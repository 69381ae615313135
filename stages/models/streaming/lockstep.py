"""Runs many calls through the same layers together, so that each layer is in memory only while they
pass it.

How it works:

1. Each call runs the model's own forward, unchanged, in a greenlet. A greenlet is a function that
   can pause inside nested calls and resume later in the same thread.
2. `run_calls` puts a door before each layer, by replacing `forward` on the layer object. At a door
   a call pauses and gives the number of the layer that it waits for.
3. The loop takes the lowest number that any call waits for and has the provider load that layer.
4. It announces the layer to expect next, which is the one that followed the last time.
5. All calls that wait at this door run one after the other, each up to its next door. So a layer is
   fetched once for all calls, and each call computes what it would compute alone.
6. At the end, or when one call raises, the doors are removed and unfinished calls are ended.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import greenlet
import torch
from torch import nn

Made = TypeVar("Made")
NOWHERE = -1


class LayerProvider(Protocol):
    """Provides the layers by number."""

    def prefetch(self, layer: int) -> None:
        """Start to fetch the layer that is expected next, during the computation."""

    def load(self, layer: int) -> None:
        """Load the layer. Only one layer is loaded at a time."""

    def release(self, layer: int) -> None:
        """Release the layer, after all waiting calls have passed it."""


class LayerLockstep:
    """The doors of a model's layers."""

    def __init__(self, layers: Sequence[nn.Module], provider: LayerProvider) -> None:
        self._layers = layers
        self._provider = provider
        self._after = {at: at + 1 for at in range(len(layers) - 1)} | {len(layers) - 1: 0}
        """Layer → the layer that was requested after it, or is expected."""
        self._last = len(layers) - 1
        """The last layer that calls passed."""

    def run_calls(
        self,
        calls: Sequence[Callable[[], Made]],
        passed: Callable[[int], None] = lambda layer: None,
    ) -> list[Made]:
        """Return the result of each call, in order. An error in one call is raised and ends the
        others.

        `passed` is called with the number of each layer after all waiting calls have passed it,
        while it is still loaded. An error that it raises ends the calls, too."""
        crossing = _Crossing(calls)
        # Inference mode is a setting of the thread, which all calls share.
        with torch.inference_mode(), self._doors(crossing):
            crossing.set_out()
            self._after[self._last] = min(crossing.waiting.values(), default=self._last)
            while crossing.waiting:
                # Calls may take different paths: those ahead wait for the others.
                at = min(crossing.waiting.values())
                self._provider.load(at)
                try:
                    self._provider.prefetch(self._after[at])
                    self._after[at] = crossing.let_through(at, self._after[at])
                    passed(at)
                finally:
                    self._provider.release(at)
                self._last = at
        return crossing.made

    @contextlib.contextmanager
    def _doors(self, crossing: "_Crossing[Any]") -> Iterator[None]:
        """Put a door before each layer. At the end of the block, unfinished calls are ended and the
        doors are removed."""
        own = [layer.__dict__.get("forward") for layer in self._layers]
        for at, layer in enumerate(self._layers):
            layer.__dict__["forward"] = partial(crossing.pass_through, at, layer.forward)
        try:
            yield
        finally:
            crossing.leave()
            for layer, forward in zip(self._layers, own, strict=True):
                del layer.__dict__["forward"]
                if forward is not None:
                    layer.__dict__["forward"] = forward


class _Crossing(Generic[Made]):
    """Calls in progress, each paused at a door or finished."""

    def __init__(self, calls: Sequence[Callable[[], Made]]) -> None:
        self.made: list[Made] = [None] * len(calls)  # type: ignore[list-item]
        self.waiting: dict[int, int] = {}
        """Call → the layer before which it waits."""
        self._open = NOWHERE
        self._walkers = [greenlet.greenlet(partial(self._walk, *one)) for one in enumerate(calls)]
        for walker in self._walkers:  # each call gets a copy of the caller's context variables
            walker.gr_context = contextvars.copy_context()

    def set_out(self) -> None:
        """Run all calls up to their first door."""
        for call in range(len(self._walkers)):
            self._go_on(call)

    def let_through(self, layer: int, after: int) -> int:
        """Run all calls that wait before a layer up to their next door. Return the layer that the
        last of them requests, or `after` if they are done."""
        self._open = layer
        for call in [call for call, at in self.waiting.items() if at == layer]:
            after = self._go_on(call, after)
        self._open = NOWHERE
        return after

    def pass_through(self, layer: int, forward: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Replace a layer's forward: wait until the door opens, then compute."""
        if self._open != layer:
            greenlet.getcurrent().parent.switch(layer)
        return forward(*args, **kw)

    def leave(self) -> None:
        """End the unfinished calls by raising in each."""
        self._open = NOWHERE
        for walker in self._walkers:
            if walker:
                walker.throw()

    def _walk(self, call: int, compute: Callable[[], Made]) -> None:
        self.made[call] = compute()

    def _go_on(self, call: int, after: int = NOWHERE) -> int:
        self.waiting.pop(call, None)
        walker = self._walkers[call]
        layer = walker.switch()
        if walker.dead:
            return after
        self.waiting[call] = int(layer)
        return self.waiting[call]

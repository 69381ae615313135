"""Observes a half that runs on tensors without data: when layers and MLPs compute, and where
prefill ends. Counts nothing itself."""

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from stages.memory.live_bytes import FLOAT32_BYTES, MetaMemoryCounter
from stages.models.halves.offload import outermost_layers
from stages.models.kv_profile import LayerMemory

NEW_TOKENS = 2
"""Tokens to generate: prefill gives the first one, and a regular decode step the second."""


def decoder_of(model: Any) -> Any:
    """Return the innermost module that is called once per token."""
    inner = model.get_decoder() if hasattr(model, "get_decoder") else None
    return model if inner is None or inner is model else decoder_of(inner)


class PromptWatch:
    """Separates prefill from the next decode step, at the decoder's second call."""

    def __init__(self, live: MetaMemoryCounter) -> None:
        self._live = live
        self._calls = 0
        self._prompt: dict[str, int] = {}
        self.kept: tuple[LayerMemory, ...] = ()
        """Cache memory per row by layer; empty if the layers do not cache all tokens of a row."""

    def of(self, decoder: Any) -> contextlib.AbstractContextManager[None]:
        return _held([decoder.register_forward_pre_hook(self._called, with_kwargs=True)])

    def _called(self, module: Any, args: Any, kwargs: Any) -> None:
        self._calls += 1
        if self._calls == NEW_TOKENS:
            cache = kwargs.get("past_key_values")
            self._prompt, self.kept = self._so_far(cache_bytes(cache)), kept_of(cache)
            self._live.reset_peak()

    def _so_far(self, cache: int) -> dict[str, int]:
        live = self._live
        return {
            "peak_bytes": live.peak,
            "peak_bytes_32": live.peak_32,
            "kept_bytes": cache,
            "mlp_bytes": live.inside,
            "outside_bytes": live.outside,
            "outside_bytes_32": live.outside_32,
            "positions": live.positions,
            "scores_bytes": live.scores,
            "mask_bytes": live.mask,
            "flops": live.flops,
        }

    def found(self) -> dict[str, int]:
        if not self._prompt:
            return self._so_far(0)
        step = self._live.flops - self._prompt["flops"]
        return {**self._prompt, "step_bytes": self._live.peak, "step_flops": step}


def cache_bytes(cache: Any) -> int:
    """Return the bytes that a KV cache of any kind holds."""
    if isinstance(cache, torch.Tensor):
        return cache.numel() * cache.element_size()
    if isinstance(cache, list | tuple):
        return sum(map(cache_bytes, cache))
    if isinstance(cache, dict):
        return cache_bytes(list(cache.values()))
    parts = ("layers", "self_attention_cache", "cross_attention_cache")
    held = [getattr(cache, name) for name in parts if hasattr(cache, name)]
    if not held and type(cache).__name__.endswith(("Layer", "Cache")):
        held = list(vars(cache).values())
    return cache_bytes(held)


def kept_of(cache: Any) -> tuple[LayerMemory, ...]:
    """Return what a cache's layers hold per row, with equal layers counted together. Return nothing
    for an unknown kind of cache, or if its layers saw different numbers of tokens."""
    layers = [_LayerKept.of(layer) for layer in getattr(cache, "layers", None) or ()]
    if len({kept.tokens for kept in layers if kept.tokens and not kept.of_row.window}) > 1:
        return ()
    return tuple(
        replace(kept, layers=count) for kept, count in Counter(k.of_row for k in layers).items()
    )


class _LayerKept(NamedTuple):
    """What one layer's cache holds per row, and how many tokens it saw."""

    of_row: LayerMemory
    tokens: int

    @classmethod
    def of(cls, layer: Any) -> "_LayerKept":
        parts = (getattr(layer, name, None) for name in ("keys", "values", "indexer_keys"))
        seen: list[torch.Tensor] = [part for part in parts if part is not None and part.numel()]
        states: list[torch.Tensor] = [
            part
            for name in ("conv_states", "recurrent_states")
            for part in (getattr(layer, name, None) or {}).values()
            if part is not None
        ]
        of_row = LayerMemory(
            kind=type(layer).__name__,
            token_bytes=sum(part.nbytes // (len(part) * part.shape[-2]) for part in seen),
            window=int(getattr(layer, "sliding_window", None) or 0),
            state_bytes=sum(part.nbytes // len(part) for part in states),
            state_bytes_32=sum(part[0].numel() * FLOAT32_BYTES for part in states),
        )
        return cls(of_row, int(seen[0].shape[-2]) if seen else 0)


def watch_mlps(skeleton: Any, live: MetaMemoryCounter) -> contextlib.AbstractContextManager[None]:
    """Notify the counter when an MLP starts and ends."""
    handles = []
    for module in _mlps(skeleton):
        handles += [
            module.register_forward_pre_hook(
                lambda _, given: live.enter(given[0].shape[:-1].numel() if given else 0)
            ),
            module.register_forward_hook(lambda *_: live.leave()),
        ]
    return _held(handles)


@contextlib.contextmanager
def watch_layers(skeleton: Any, live: MetaMemoryCounter) -> Iterator[list[int]]:
    """Yield the peak bytes at the start of a layer, in 16 and in 32 bit."""
    peaks = [0, 0]

    def begins(*_: Any) -> None:
        peaks[:] = max(peaks[0], live.bytes), max(peaks[1], live.bytes_32)

    with _held([one.register_forward_pre_hook(begins) for one in outermost_layers(skeleton)]):
        yield peaks


@contextlib.contextmanager
def _held(handles: Iterable[Any]) -> Iterator[None]:
    """Keep hooks until the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mlps(model: Any) -> Iterator[torch.nn.Module]:
    """Yield modules of linear layers that widen and narrow again, without other modules that have
    weights."""
    for module in model.modules():
        parts = [part for part in module.children() if any(True for _ in part.parameters())]
        linears = [part for part in parts if isinstance(part, torch.nn.Linear)]
        if 1 < len(linears) == len(parts) and linears[0].out_features >= 2 * linears[0].in_features:
            yield module


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence library warnings about tensors without data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)

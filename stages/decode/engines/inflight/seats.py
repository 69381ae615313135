"""Tells which room in slots a layer of transformers' own cache has. Knows no rows."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.cache_utils import (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from stages.decode.engines.inflight.layers import (
    CannotSeat,
    IndexedLayer,
    RingLayer,
    SlotLayer,
    StateAndSlotLayer,
    StateLayer,
)
from stages.decode.engines.inflight.shape import PoolShape

SEATS: Mapping[type[Any], Callable[[Any, PoolShape, torch.Tensor], Any]] = {
    DynamicLayer: SlotLayer,
    DynamicSlidingWindowLayer: RingLayer,
    DynamicIndexedLayer: IndexedLayer,
    LinearAttentionLayer: lambda like, shape, at: StateLayer(like, shape),
    LinearAttentionAndFullAttentionLayer: StateAndSlotLayer,
}
"""Class of a layer of transformers' own cache → what keeps as much of every row."""


def seats(layer: Any, shape: PoolShape, at: torch.Tensor) -> Any:
    """Return room for as much as `layer` holds of one row, in every slot. Raises CannotSeat."""
    if isinstance(layer, DummyLayer):
        return layer
    if type(layer) in SEATS:
        return SEATS[type(layer)](layer, shape, at)
    if isinstance(layer, DynamicLayer) and type(layer).update is DynamicLayer.update:
        return IndexedLayer(layer, shape, at)
    raise CannotSeat(f"it remembers rows in a {type(layer).__name__}")

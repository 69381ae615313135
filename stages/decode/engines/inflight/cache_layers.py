"""Slot versions of transformers' KV-cache layers, with tensors of a fixed shape.

Each sequence has a slot and writes at its own column. Columns beyond it hold an earlier sequence's
data or nothing, and are masked. So a sequence's numbers do not depend on its neighbours.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionLayer

from stages.decode.engines.inflight.pool_shape import PoolShape


class UnsupportedCacheError(Exception):
    """No slot version of this KV-cache layer exists."""


def fill(target: torch.Tensor, part: torch.Tensor) -> None:
    """Copy a tensor [..., tokens, width] to the first columns of a slot, and zero the others."""
    tokens = part.shape[-2]
    target[..., :tokens, :] = part
    target[..., tokens:, :] = 0  # a masked NaN still gives NaN


def widened(part: torch.Tensor, columns: int) -> torch.Tensor:
    """Return the tensor as [..., columns, width], padded with zeros."""
    target = part.new_zeros(*part.shape[:-2], columns, part.shape[-1])
    columns_kept = min(columns, part.shape[-2])
    target[..., :columns_kept, :] = part[..., :columns_kept, :]
    return target


class SlotLayer(CacheLayerMixin):
    """Keys and values of a layer with full attention over the past."""

    # A cache that claims to be compileable gets its masks before the model is called, and some
    # models reject masks that were made elsewhere.
    is_compileable, is_sliding, is_croppable = False, False, False
    keys: Any
    values: Any

    def __init__(self, template: Any, shape: PoolShape, lengths: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.columns = shape.columns
        self.batch_size = shape.rows
        self.is_initialized = True
        self.offset = 0
        """First column of this layer in the mask."""
        self.direct = False
        """Whether attention gets the slots' tensors as they are."""
        self._slots = torch.arange(shape.slots, device=lengths.device)
        self._lengths = lengths[: shape.slots]
        """The next column of each slot; this tensor belongs to the pool."""
        self.keys, self.values = (self._empty(part) for part in (template.keys, template.values))

    def _empty(self, part: torch.Tensor) -> torch.Tensor:
        """Return zeros for all slots, of the type of `part` [1, heads, tokens, width]."""
        heads, width = part.shape[1], part.shape[-1]
        return part.new_zeros(len(self._slots), heads, self.columns, width)

    def put(self, slot: int, sequence: Any, tokens: int) -> None:
        """Copy a prefilled sequence into a slot; nothing of the previous sequence stays."""
        for target, source in ((self.keys, sequence.keys), (self.values, sequence.values)):
            fill(target[slot], source[0])

    def resize(self, columns: int) -> None:
        """Change the number of columns; the running sequences are kept."""
        self.columns = columns
        for name in ("keys", "values"):
            setattr(self, name, widened(getattr(self, name), columns))

    def lazy_initialization(self, *_: Any) -> None:
        """Do nothing: the tensors exist from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        column, slots = self.column(), len(self._slots)
        self.keys[self._slots, :, column] = key_states[:slots, :, 0]
        self.values[self._slots, :, column] = value_states[:slots, :, 0]
        if self.direct:
            return self.keys, self.values
        return self._of_rows(self.keys), self._of_rows(self.values)

    def _of_rows(self, part: torch.Tensor) -> torch.Tensor:
        """Return the slots' tensor extended to all rows. Unused rows are zeros. A single slot is
        expanded to all rows without a copy."""
        if (unused := self.batch_size - len(part)) == 0:
            return part
        if len(part) == 1:
            return part.expand(self.batch_size, *part.shape[1:])
        zeros = part.new_zeros((1,) * part.ndim).expand(unused, *part.shape[1:])
        return torch.cat([part, zeros])

    def column(self) -> torch.Tensor:
        """Return the column that each slot writes to."""
        return self._lengths

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns, self.offset

    def get_seq_length(self) -> int:
        # Every column then lies before the new token, and only the mask decides.
        return self.offset + self.columns - 1

    def get_max_length(self) -> int:
        return self.columns


class RingLayer(SlotLayer):
    """Keys and values of a sliding-window layer; the newest column replaces the oldest."""

    is_sliding = True

    def __init__(self, template: Any, shape: PoolShape, lengths: torch.Tensor) -> None:
        self.sliding_window = template.sliding_window
        columns = min(template.sliding_window, shape.columns)
        super().__init__(template, replace(shape, columns=columns), lengths)

    def put(self, slot: int, sequence: Any, tokens: int) -> None:
        columns = sequence.keys.shape[-2]
        where = torch.arange(tokens - columns, tokens, device=sequence.keys.device) % self.columns
        for target, source in ((self.keys, sequence.keys), (self.values, sequence.values)):
            target[slot] = 0
            target[slot, :, where] = source[0]

    def resize(self, columns: int) -> None:
        # A sequence that has wrapped around has more tokens than the window, and so have the
        # columns.
        if (columns := min(self.sliding_window, columns)) != self.columns:
            super().resize(columns)

    def column(self) -> torch.Tensor:
        return self._lengths % self.columns


class IndexedLayer(SlotLayer):
    """Keys and values of a layer with indexed sparse attention, and the index's own keys: one more
    tensor of shape [1, ..., tokens, width], which its own method appends to."""

    def __init__(self, template: Any, shape: PoolShape, lengths: torch.Tensor) -> None:
        super().__init__(template, shape, lengths)
        self._index = index_of(template)
        for name, value in vars(template).items():
            if name not in vars(self):  # attributes that the model may read
                setattr(self, name, value)
        for name in self._index.values():
            part = getattr(template, name)
            target = part.new_zeros(shape.slots, *part.shape[1:-2], shape.columns, part.shape[-1])
            setattr(self, name, target)

    def __getattr__(self, method: str) -> Any:
        """Return the function that appends to the index, under the name that the family uses."""
        if method not in (index := vars(self).get("_index", {})):
            raise AttributeError(method)
        return partial(self._add, index[method])

    def put(self, slot: int, sequence: Any, tokens: int) -> None:
        super().put(slot, sequence, tokens)
        for name in self._index.values():
            fill(getattr(self, name)[slot], getattr(sequence, name)[0])

    def resize(self, columns: int) -> None:
        super().resize(columns)
        for name in self._index.values():
            setattr(self, name, widened(getattr(self, name), columns))

    def _add(self, name: str, new: torch.Tensor) -> torch.Tensor:
        part = getattr(self, name)
        part.movedim(-2, 1)[self._slots, self._lengths] = new[: len(self._slots)].movedim(-2, 1)[
            :, 0
        ]
        return self._of_rows(part)


def index_of(layer: Any) -> dict[str, str]:
    """Return the method that appends to the index → the name of the index tensor; empty for a layer
    without one. Raises UnsupportedCacheError if they are ambiguous."""
    known = vars(DynamicLayer())
    names = [n for n, value in vars(layer).items() if n not in known and torch.is_tensor(value)]
    methods = [n for n in dir(layer) if n.startswith("update_") and not hasattr(DynamicLayer, n)]
    if not names:
        return {}
    if len(names) > 1 or len(methods) != 1:
        raise UnsupportedCacheError(f"unknown tensors in the cache layer {type(layer).__name__}")
    return {methods[0]: names[0]}


class StateLayer(LinearAttentionLayer):
    """The recurrent states of a layer, whose size is independent of the sequence length."""

    def __init__(self, template: Any, shape: PoolShape) -> None:
        LinearAttentionLayer.__init__(self, number_of_states=template.number_of_states)
        for name in STATES:
            flag = f"is_{name}_initialized"
            setattr(self, flag, dict(getattr(template, flag)))
            setattr(self, name, rows_of(getattr(template, name), shape.rows))
        self.has_previous_state = dict(template.has_previous_state)
        self.conv_kernel_size = dict(template.conv_kernel_size)
        self.device, self.dtype = template.device, template.dtype
        self.batch_size = shape.rows

    def put(self, slot: int, sequence: Any, tokens: int) -> None:
        for name in STATES:
            for index, target in getattr(self, name).items():
                if target is not None:
                    target[slot] = getattr(sequence, name)[index][0]


class StateAndSlotLayer(StateLayer, SlotLayer):  # type: ignore[override]
    """A layer with both recurrent states and full-attention keys and values."""

    batch_size: int

    def __init__(self, template: Any, shape: PoolShape, lengths: torch.Tensor) -> None:
        StateLayer.__init__(self, template, shape)
        SlotLayer.__init__(self, template, shape, lengths)

    def lazy_initialization(self, *_: Any, **__: Any) -> None:
        """Do nothing: the tensors exist from the start."""

    def put(self, slot: int, sequence: Any, tokens: int) -> None:
        StateLayer.put(self, slot, sequence, tokens)
        SlotLayer.put(self, slot, sequence, tokens)


STATES = ("conv_states", "recurrent_states")
"""Attributes with a layer's states, which are numbered."""


def rows_of(states: Mapping[int, Any], rows: int) -> dict[int, Any]:
    """Return zeros for `rows` rows, of the type of one row's states. Non-tensors stay."""
    return {
        index: state.new_zeros(rows, *state.shape[1:]) if torch.is_tensor(state) else state
        for index, state in states.items()
    }

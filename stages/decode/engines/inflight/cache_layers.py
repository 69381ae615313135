"""Slot versions of transformers' KV-cache layers, with tensors of a fixed shape.

Each sequence has a slot and writes at its own column. Columns beyond it hold an earlier sequence's
data or nothing, and are masked. So a sequence's numbers do not depend on the sequences beside it.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    LinearAttentionLayer,
)

from stages.decode.engines.inflight.pool_shape import PoolShape


class UnsupportedCacheError(Exception):
    """No slot version of this KV-cache layer exists."""


def fill(target: torch.Tensor, part: torch.Tensor) -> None:
    """Put what is kept of tokens, of shape [..., tokens, width], at the first columns of a row's
    room; nothing is left in the others."""
    tokens = part.shape[-2]
    target[..., :tokens, :] = part
    target[..., tokens:, :] = 0  # a masked NaN is a NaN all the same


def widened(part: torch.Tensor, columns: int) -> torch.Tensor:
    """Return as much of rows in so many columns, of shape [..., columns, width]; zeros where there
    was nothing."""
    target = part.new_zeros(*part.shape[:-2], columns, part.shape[-1])
    kept = min(columns, part.shape[-2])
    target[..., :kept, :] = part[..., :kept, :]
    return target


class SlotLayer(CacheLayerMixin):
    """Keys and values of a layer with full attention over the past."""

    # A cache that says it can be compiled is given its masks before the model is called, and some
    # models take none that were made elsewhere.
    is_compileable, is_sliding, is_croppable = False, False, False
    keys: Any
    values: Any

    def __init__(self, template: Any, shape: PoolShape, lengths: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.columns = shape.columns
        self.batch_size = shape.rows
        self.is_initialized = True
        self.offset = 0
        """The column of the mask at which this layer's begin."""
        self._slots = torch.arange(shape.slots, device=lengths.device)
        self._lengths = lengths[: shape.slots]
        """The next column of each slot; it is the pool's own."""
        self.keys, self.values = (self._empty(part) for part in (template.keys, template.values))

    def _empty(self, part: torch.Tensor) -> torch.Tensor:
        """Return zeros for as much as `part`, of shape [1, heads, tokens, width], in every slot."""
        heads, width = part.shape[1], part.shape[-1]
        return part.new_zeros(len(self._slots), heads, self.columns, width)

    def put(self, slot: int, sequence: Any, tokens: int) -> None:
        """Take over what a row has read; nothing is left of who was here before."""
        for target, source in ((self.keys, sequence.keys), (self.values, sequence.values)):
            fill(target[slot], source[0])

    def resize(self, columns: int) -> None:
        """Make room for rows of so many tokens; those that are here keep theirs."""
        self.columns = columns
        for name in ("keys", "values"):
            setattr(self, name, widened(getattr(self, name), columns))

    def lazy_initialization(self, *_: Any) -> None:
        """Do nothing: there is room from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        column, slots = self.column(), len(self._slots)
        self.keys[self._slots, :, column] = key_states[:slots, :, 0]
        self.values[self._slots, :, column] = value_states[:slots, :, 0]
        return self._of_rows(self.keys), self._of_rows(self.values)

    def _of_rows(self, part: torch.Tensor) -> torch.Tensor:
        """Return a tensor of slots with zeros for the rows that are nobody's. Those beside a single
        slot are shown what it holds, which takes no room."""
        if (unused := self.batch_size - len(part)) == 0:
            return part
        if len(part) == 1:
            return part.expand(self.batch_size, *part.shape[1:])
        zeros = part.new_zeros((1,) * part.ndim).expand(unused, *part.shape[1:])
        return torch.cat([part, zeros])

    def column(self) -> torch.Tensor:
        """Return where each slot's row writes."""
        return self._lengths

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns, self.offset

    def get_seq_length(self) -> int:
        # So that every column lies before the token that is made, and the mask alone decides.
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
        kept = sequence.keys.shape[-2]
        where = torch.arange(tokens - kept, tokens, device=sequence.keys.device) % self.columns
        for target, source in ((self.keys, sequence.keys), (self.values, sequence.values)):
            target[slot] = 0
            target[slot, :, where] = source[0]

    def resize(self, columns: int) -> None:
        # A row that has gone round has more tokens than a window, and so have the columns.
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
            if name not in vars(self):  # what else the model may ask of it
                setattr(self, name, value)
        for name in self._index.values():
            part = getattr(template, name)
            target = part.new_zeros(shape.slots, *part.shape[1:-2], shape.columns, part.shape[-1])
            setattr(self, name, target)

    def __getattr__(self, method: str) -> Any:
        """Return what adds to the index, under the name that the family has for it."""
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
    """Return what a layer keeps of each token beside keys and values: the name of the method that
    adds to it → that of the tensor. Raises CannotSeat where it cannot be told."""
    known = vars(DynamicLayer())
    names = [n for n, value in vars(layer).items() if n not in known and torch.is_tensor(value)]
    methods = [n for n in dir(layer) if n.startswith("update_") and not hasattr(DynamicLayer, n)]
    if not names:
        return {}
    if len(names) > 1 or len(methods) != 1:
        raise UnsupportedCacheError(f"it remembers more in a {type(layer).__name__} than an index")
    return {methods[0]: names[0]}


class StateLayer(LinearAttentionLayer):
    """The recurrent states of a layer, whose size is independent of the sequence length."""

    def __init__(self, template: Any, shape: PoolShape) -> None:
        LinearAttentionLayer.__init__(self, number_of_states=template.number_of_states)
        for name in STATES:
            setattr(
                self, f"is_{name}_initialized", dict(getattr(template, f"is_{name}_initialized"))
            )
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
        """Do nothing: there is room from the start."""

    def put(self, slot: int, sequence: Any, tokens: int) -> None:
        StateLayer.put(self, slot, sequence, tokens)
        SlotLayer.put(self, slot, sequence, tokens)


STATES = ("conv_states", "recurrent_states")
"""Names under which a layer has its states, each by number."""


def rows_of(states: Mapping[int, Any], rows: int) -> dict[int, Any]:
    """Return as much of so many rows as these are of one; what is no tensor stays."""
    return {
        index: state.new_zeros(rows, *state.shape[1:]) if torch.is_tensor(state) else state
        for index, state in states.items()
    }

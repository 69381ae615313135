"""Computes the attention of an encoder's windows with one call per window length.

33 model files of transformers divide a picture's tokens into windows (or frames) and call SDPA for
each of them in each layer. On a GPU these calls take longer than their kernels.

1. `group_windows` finds the attention modules with that loop by the names in their code. It gives
   each a copy of its configuration whose attention is named ATTENTION. That name contains `flash`,
   so their code passes all tokens at once, and the lengths of the windows.
2. `_attention` puts the windows of one length into the batch dimension.
3. A module's own loop is computed too when a number of windows of one length is new to its class,
   precision and kind of device. Where the results are not equal, bit for bit, the loop decides.

CPUs keep the loop: the kernels of some of them (AMX) round by the number of windows.
"""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from artifacts.packs import Record, RecordSet
from stages.memory.cuda_graphs import same_bits
from stages.models.halves.boundary import names_in

ATTENTION: Final = "penstock_flash_windows"
LOOP: Final = frozenset({"get_max_seqlen", "is_flash_attention_requested", "split", "tolist"})
"""Names in the code of an attention with windows, besides its argument `cu_seqlens`."""
EQUAL: dict[str, bool] = {}
"""Class, precision, length and number of windows → whether one call gives the loop's bits."""


Attend = Callable[..., torch.Tensor]
States = tuple[torch.Tensor, ...]
"""Queries, keys and values."""


class WindowGroup(NamedTuple):
    """The windows of one length."""

    length: int
    windows: int
    places: torch.Tensor | None
    """Where their tokens are; None: the windows are all of this length."""


class Windows:
    """The windows of a picture's tokens, known to the host."""

    def __init__(self, boundaries: torch.Tensor) -> None:
        """Take the first token of each window, and the number of tokens."""
        bounds, device = boundaries.tolist(), boundaries.device
        self.lengths: list[int] = [b - a for a, b in pairwise(bounds)]
        self.longest = max(self.lengths, default=0)
        starts: dict[int, list[int]] = {}
        for start, length in zip(bounds, self.lengths, strict=False):
            starts.setdefault(length, []).append(start)
        starts.pop(0, None)
        self.groups: list[WindowGroup] = []
        self.back: torch.Tensor | None = None
        """Where the tokens are in the concatenation of all groups; None for a single group."""
        places = [
            (torch.tensor(found)[:, None] + torch.arange(length)).flatten()
            for length, found in starts.items()
        ]
        for (length, found), place in zip(starts.items(), places, strict=True):
            index = place.to(device, non_blocking=True) if len(places) > 1 else None
            self.groups.append(WindowGroup(length, len(found), index))
        if len(places) > 1:
            self.back = torch.cat(places).argsort().to(device, non_blocking=True)


_known: Any = WeakTensorKeyDictionary()
"""Boundaries → their windows, read once for all layers."""


def windows_of(boundaries: torch.Tensor) -> Windows:
    """Return the windows with these boundaries."""
    if boundaries not in _known:
        _known[boundaries] = Windows(boundaries)
    found: Windows = _known[boundaries]
    return found


def group_windows(half: Any) -> int:
    """Have a half's attention modules with windows compute each length at once, permanently. Return
    their number. Only SDPA is replaced."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
    configs: dict[int, Any] = {}
    modules = [m for m in half.modules() if has_windows(type(m)) and _attends(m) == "sdpa"]
    for module in modules:
        if id(module.config) not in configs:
            configs[id(module.config)] = copy.copy(module.config)
            configs[id(module.config)]._attn_implementation_internal = ATTENTION
        module.config = configs[id(module.config)]
        module.register_forward_pre_hook(_with_longest, with_kwargs=True)
    return len(modules)


def has_windows(cls: type[Any]) -> bool:
    """Return whether a class of modules has the loop over windows."""
    return "cu_seqlens" in cls.forward.__code__.co_varnames and names_in(cls.forward) >= LOOP


def _attends(module: Any) -> Any:
    return getattr(getattr(module, "config", None), "_attn_implementation", None)


def _with_longest(module: Any, args: Any, kwargs: Any) -> Any:
    """Give the module the length of its longest window: it would read it from the device."""
    if (boundaries := kwargs.get("cu_seqlens")) is not None:
        kwargs["max_seqlen"] = windows_of(boundaries).longest
    return args, kwargs


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: Any = None,
    max_length_q: Any = None,
    max_length_k: Any = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention within windows. Shapes: [1, heads, tokens, width] → [1, tokens, heads,
    width]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(*states: Any) -> torch.Tensor:
        query, key, value = states
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]

    states = (query, key, value)
    if cu_seq_lens_q is None:
        return attend(*states), None
    windows = windows_of(cu_seq_lens_q)
    known = [EQUAL.get(_name(module, g, query), g.windows == 1 or None) for g in windows.groups]
    if attention_mask is not None or len(query) != 1 or False in known:
        return _loop(attend, states, windows), None
    if None not in known:
        return _in_order(windows, [_together(attend, states, g) for g in windows.groups]), None
    made = _loop(attend, states, windows)
    for group in (g for g in windows.groups if g.windows > 1):
        expected = made[0] if group.places is None else made[0].index_select(0, group.places)
        same = same_bits(expected, _together(attend, states, group))
        EQUAL[_name(module, group, query)] = same
    return made, None


def _name(module: Any, group: WindowGroup, query: torch.Tensor) -> str:
    """Return the name of a comparison."""
    shape = f"{query.shape[1]} x {query.shape[3]}, {group.windows} of {group.length}"
    return f"{type(module).__qualname__} {str(query.dtype).removeprefix('torch.')} {shape}"


def _loop(attend: Attend, states: States, windows: Windows) -> torch.Tensor:
    """Compute each window by itself, as the module's own code does."""
    parts = [torch.split(state, windows.lengths, dim=2) for state in states]
    return torch.cat([attend(*window) for window in zip(*parts, strict=True)], dim=1)


def _together(attend: Attend, states: States, group: WindowGroup) -> torch.Tensor:
    """Compute the windows of one length as rows of a batch. Shape: [tokens, heads, width]."""
    tokens = [s if group.places is None else s.index_select(2, group.places) for s in states]
    rows = [s[0].unflatten(1, (group.windows, group.length)).transpose(0, 1) for s in tokens]
    return attend(*rows).flatten(0, 1)


def _in_order(windows: Windows, made: list[torch.Tensor]) -> torch.Tensor:
    """Return the results of all groups in the order of the tokens."""
    tokens = made[0] if windows.back is None else torch.cat(made).index_select(0, windows.back)
    return tokens[None]


class StoredWindows:
    """The results of comparisons on one kind of device."""

    def __init__(self, records: RecordSet) -> None:
        """Take over the stored results."""
        self._records = records
        EQUAL.update({key: bool(records.meta(key)["equal"]) for key in records.keys()})  # noqa: SIM118

    def keep(self, half: Any) -> dict[str, Any]:
        """Store new results. Return which windows of this half are computed with one call per
        length, and which one by one because the bits would differ."""
        new = [Record(key=k, meta={"equal": e}) for k, e in EQUAL.items() if k not in self._records]
        self._records.publish(new)
        classes = {type(module).__qualname__ for module in half.modules()}
        own = {name: equal for name, equal in EQUAL.items() if name.partition(" ")[0] in classes}
        apart = sorted(name for name, equal in own.items() if not equal)
        return {"together": len(own) - len(apart), "one_by_one": apart}

"""What the rows of a pool are remembered in, all of them ending at the last column. Knows neither
prompts nor captions.

Some models tell by columns how far apart two tokens are, or want the newest one last. They are
right where every row ends at the same column; and where there are always as many columns, a row's
own are the same whatever stands beside it. The layers are transformers' own: they put a token
behind the others, and after each step the oldest column is dropped. So everything is copied at each
step, which slots spare.
"""

import copy
from typing import Any

import torch
from transformers import Cache

from stages.decode.engines.inflight.layers import rows_of
from stages.decode.engines.inflight.reading import ReadRow
from stages.decode.engines.inflight.shape import PoolShape


class Aligned:
    """Room for all rows of a step."""

    def __init__(self, like: ReadRow, shape: PoolShape, at: torch.Tensor) -> None:
        """Make room for rows like this one; `at` is the pool's own: the tokens that are remembered
        of each row. Raises what an allocator raises."""
        self._at = at
        self.cache = Cache(layers=[_room(layer, shape.rows) for layer in like.cache.layers])
        self.resize(shape.columns)

    def put(self, slot: int, row: ReadRow) -> None:
        """Take over what a row has read; nothing is left of who was here before."""
        for mine, his in zip(self.cache.layers, row.cache.layers, strict=True):
            for name, value in vars(his).items():
                room = getattr(mine, name)
                if _is_of_tokens(value):
                    here = _by_token(room)[slot]
                    here.copy_(_last(_by_token(value)[0], here.shape[-2]))
                elif isinstance(value, dict):
                    for index, state in value.items():
                        if torch.is_tensor(state):
                            room[index][slot] = state[0]

    def mask(self) -> torch.Tensor:
        """Return which columns each row sees, of shape [rows, columns]: the last ones."""
        columns = torch.arange(self._columns, device=self._at.device)
        return (columns >= self._columns - 1 - self._at.unsqueeze(1)).long()

    def stepped(self) -> None:
        """Let go of the oldest column, so that there are as many before every step."""
        for layer in self.cache.layers:
            window = getattr(layer, "sliding_window", None)
            kept = min(self._columns, window or self._columns) - 1
            for name, value in vars(layer).items():
                if _is_of_tokens(value):
                    setattr(layer, name, _as_before(_last(_by_token(value), kept), value))
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = self._columns - 1

    def resize(self, columns: int) -> None:
        """Make room for rows of so many tokens, in which those that are here fit."""
        self._columns = columns
        self.stepped()


def _room(layer: Any, rows: int) -> Any:
    """Return a layer of the same kind with no token yet, of so many rows."""
    room = copy.copy(layer)
    for name, value in vars(layer).items():
        if _is_of_tokens(value):
            empty = _by_token(value)[:, ..., :0, :]
            setattr(room, name, _as_before(empty.expand(rows, *empty.shape[1:]), value))
        elif isinstance(value, dict):
            setattr(room, name, rows_of(value, rows))
    return room


def _is_of_tokens(value: Any) -> bool:
    """Return whether a layer keeps this of each token; other tensors are numbers of its own."""
    return torch.is_tensor(value) and value.ndim > 2


def _by_token(part: torch.Tensor) -> torch.Tensor:
    """Return what is kept of tokens as [rows, ..., tokens, width]; positions are kept as
    [..., rows, tokens]."""
    return part if part.is_floating_point() else part.movedim(-2, 0).unsqueeze(-1)


def _as_before(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return part if like.is_floating_point() else part.squeeze(-1).movedim(0, -2)


def _last(part: torch.Tensor, columns: int) -> torch.Tensor:
    """Return the last columns, with zeros before them where there are not so many."""
    more = columns - part.shape[-2]
    if more <= 0:
        return part[..., part.shape[-2] - columns :, :]
    return torch.cat([part.new_zeros(*part.shape[:-2], more, part.shape[-1]), part], dim=-2)

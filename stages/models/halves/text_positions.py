"""Makes a half place the text after a medium behind it, as weights were trained before transformers
5.3.

The positions need no list of families. `place_behind` goes through the runs of tokens of one
modality and moves each behind everything before it. Where transformers already does so, nothing
moves.
"""

import itertools
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.models.published import change_of, runs_as_published

METHOD = "get_rope_index"
"""Method by which transformers models compute position ids of a prompt with media."""


def place_behind(
    positions: torch.Tensor, types: torch.Tensor, attended: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move positions so that the text after a medium is placed behind it.

    `positions` [axes, rows, tokens], `types` [rows, tokens] (0: text, else a modality), `attended`
    [rows, tokens] (0: padding). Returns the positions, and for each row [rows, 1] the difference
    between the next token's position and its index.

    In each row, every run of equal types among the attended tokens keeps its shape. It is shifted
    along all axes alike, so that its smallest position follows the largest one before it.
    """
    moved, deltas = positions.clone(), []
    for row, kinds in enumerate(types):
        seen = torch.ones_like(kinds, dtype=torch.bool)
        if attended is not None:
            seen = attended[row].to(kinds.device).bool()
        part, top, start = positions[:, row, seen], -1, 0
        runs = []
        for _, run in itertools.groupby(kinds[seen].tolist()):
            end = start + len(list(run))
            shape = part[:, start:end]
            runs.append(shape - shape.min() + top + 1)
            top, start = int(runs[-1].max()), end
        if runs:
            moved[:, row, seen] = torch.cat(runs, 1)
        deltas.append(top + 1 - part.shape[1])
    return moved, torch.tensor(deltas, device=positions.device).unsqueeze(1)


def apply_published_positions(model: nn.Module, folder: Path, as_published: bool | None) -> None:
    """Make a loaded model compute position ids the way its checkpoint is run: `as_published`, or by
    the rule if None. In-tree models are already loaded that way."""
    change = change_of(folder)
    if change is not None and change.positions and runs_as_published(folder, as_published):
        place_text_behind_media(model)


def place_text_behind_media(model: nn.Module) -> None:
    """Make a loaded model place the text after a medium behind it. A model without
    `get_rope_index` is unchanged."""
    for module in model.modules():
        count = getattr(type(module), METHOD, None)
        if count is not None:
            setattr(module, METHOD, _behind(getattr(module, METHOD)))


def _behind(count: Callable[..., Any]) -> Callable[..., Any]:
    """Return `get_rope_index` with positions placed behind media."""

    @wraps(count)
    def placed(
        input_ids: Any, mm_token_type_ids: Any, *args: Any, attention_mask: Any = None, **more: Any
    ) -> Any:
        positions, _ = count(
            input_ids, mm_token_type_ids, *args, attention_mask=attention_mask, **more
        )
        return place_behind(positions, mm_token_type_ids, attention_mask)

    return placed

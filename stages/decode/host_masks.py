"""Masks that the host computes from a row's tokens, and applies to the scores of many rows.

One bit says of one token whether it may come next, so the mask of 151,936 tokens is 19 KB on its
way to a GPU. Applying masks reads nothing from there.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import LogitsProcessor

from artifacts.errors import UsageError

ALL = 0xFF
"""Eight tokens that may all come next."""


class Masks(NamedTuple):
    """The masks of some rows."""

    allowed: Any
    """Which tokens may come next, as an array of bytes of shape [rows, bytes], the first token in
    the lowest bit."""
    closing: Any = None
    """Row → the token that comes next if no allowed one has a finite score, of shape [rows]; -1:
    none. None: no row has one."""
    faults: Mapping[int, UsageError] = {}
    """Row → why it cannot go on."""

    def at(self, places: Sequence[int], rows: int) -> "Masks":
        """Return the masks of `rows` rows, these at `places` among them."""
        allowed, closing = np.full((rows, self.allowed.shape[1]), ALL, np.uint8), None
        allowed[places] = self.allowed
        if self.closing is not None:
            closing = np.full(rows, -1, np.int64)
            closing[places] = self.closing
        return Masks(allowed, closing)

    def apply(self, scores: torch.Tensor) -> torch.Tensor:
        """Return masked scores, of shape [rows, vocabulary]."""
        bits = torch.arange(8, dtype=torch.uint8, device=scores.device)
        allowed = _on(scores.device, self.allowed).unsqueeze(-1) >> bits & 1
        found = scores.masked_fill(allowed.flatten(1)[:, : scores.shape[1]] == 0, -torch.inf)
        if self.closing is None:
            return found
        closing = _on(scores.device, self.closing).unsqueeze(1)
        lost = (found.amax(1, keepdim=True) == -torch.inf) & (closing >= 0)
        closing = closing.clamp(min=0)
        return found.scatter(1, closing, torch.where(lost, 0.0, found.gather(1, closing)))


def _on(device: torch.device, array: Any) -> torch.Tensor:
    """Return an array as a tensor on a device. A copy to a GPU waits for nothing there."""
    found = torch.from_numpy(array)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found


class HostMaskProcessor(LogitsProcessor, ABC):
    """A logits processor whose masks the host computes from the tokens of each row."""

    def __init__(self) -> None:
        self._prompt_length: int | None = None
        """Number of tokens before the first generated one, known from the first call."""
        self.rows: list[Any] = []
        """What each row of a batch keeps from token to token."""

    @abstractmethod
    def new_row(self) -> Any:
        """Return what a row keeps before its first token."""

    @staticmethod
    @abstractmethod
    def masks_of(rows: Sequence[Any], tokens: Sequence[Sequence[int]], width: int) -> Masks:
        """Return the masks of rows, maybe of several processors, after these generated tokens.
        `width` is the number of scores of a row."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return masked scores, of shape [rows, vocabulary]. Raises UsageError if a row cannot go
        on."""
        if self._prompt_length is None:
            self._prompt_length = ids.shape[1]
            self.rows = [self.new_row() for _ in ids]
        tokens = ids[:, self._prompt_length :].tolist()
        masks = self.masks_of(self.rows, tokens, scores.shape[1])
        for fault in masks.faults.values():
            raise fault
        return masks.apply(scores)

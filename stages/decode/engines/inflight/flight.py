"""A row in flight: what it has said so far, and what changes what it says. Knows no slots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from artifacts.captions import Ended
from artifacts.errors import UsageError
from stages.decode.engines.inflight.reading import ReadRow
from stages.decode.protocol import Asked


@dataclass(kw_only=True, slots=True)
class Flight:
    """A row that is being said."""

    asked: Asked
    most: int
    """Most tokens of its prompt and its caption together."""
    limit: int
    """Most tokens of its caption."""
    ends: frozenset[int]
    processors: Any
    """What changes its logits; empty of most checkpoints."""
    ids: torch.Tensor
    """All its tokens up to the last that was made, of shape [1, tokens], for the processors."""
    stopped: Callable[[Sequence[int]], bool] | None = None
    """Whether its new tokens end it, besides one of `ends`; None: they do not."""
    prompt_tokens: int = 0
    fault: UsageError | None = None
    """Why it is not said: its own settings cannot be followed."""
    said: list[int] = field(default_factory=list)
    ended: Ended | None = None
    told: float = 0.0
    """Time when its words were told last, while it is said."""

    @classmethod
    def of(cls, asked: Asked, row: ReadRow) -> "Flight":
        return cls(
            asked=asked,
            most=row.tokens + row.limit,
            limit=row.limit,
            ends=row.ends,
            processors=row.processors,
            ids=row.ids,
            stopped=row.stopped,
            prompt_tokens=row.prompt_tokens,
        )

    @classmethod
    def refused(cls, asked: Asked, fault: UsageError) -> "Flight":
        """Return the end of a row that cannot be said as it is asked."""
        nothing = torch.zeros((1, 0), dtype=torch.long)
        return cls(
            asked=asked,
            most=0,
            limit=0,
            ends=frozenset(),
            processors=(),
            ids=nothing,
            fault=fault,
            ended="stop",
        )

    def hear(self, token: int) -> bool:
        """Add a token to what was said; return whether it is the last."""
        self.said.append(token)
        if token in self.ends or self.fault or (self.stopped and self.stopped(self.said)):
            self.ended = "stop"
        elif len(self.said) >= self.limit:
            self.ended = "length"
        return self.ended is not None

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the token that comes next, of shape [1]. `logits` are of shape [1, words]."""
        if self.fault is None:
            try:
                logits = self.processors(self.ids, logits)
            except UsageError as error:
                if not self.asked.member.settings:
                    raise
                self.fault = error  # it ends with this token, which nobody reads
        token: torch.Tensor = logits.argmax(-1)
        if len(self.processors):
            self.ids = torch.cat([self.ids, token.unsqueeze(1).to(self.ids.dtype)], dim=1)
        return token


class Heard:
    """Tokens on their way from the device."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self._tokens, self._there = tokens, None
        if tokens.device.type == "cuda":  # so that the next step is begun before these are read
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def read(self) -> list[int]:
        """Return them, once they are here."""
        if self._there is not None:
            self._there.synchronize()
        return self._tokens.tolist()

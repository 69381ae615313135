"""Computes how sure a model was of each token: its log-probability and its margin.

Both come from raw logits: before penalties, temperature, masks and forced words. The margin of a
token is its logit minus the largest logit of any other token, so it is negative where the model
preferred another token.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from stages.models.protocols import Half

PIECE_BYTES = (1 << 20, 32 << 20)
"""Log-probabilities are computed for rows of at most this many bytes at once: on a CPU so that they
stay in its cache, on a GPU so that they take little memory beside the logits."""
DIGITS = 4
"""Decimals of the fields of a record."""


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """Return the likeliest token of each row, of shape [rows]; the first of several. `logits` are
    of shape [rows, vocabulary] in fp32."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    # 8 rows of 151,936 logits take numpy 0.08 ms, torch 1.0 ms; `token_scores` takes 0.8 ms.
    return torch.from_numpy(logits.numpy().argmax(-1))


def are_finite(logits: torch.Tensor) -> bool:
    """Return whether the logits of each row could be compared, as `Confidence.is_finite`. `logits`
    are of shape [rows, vocabulary]."""
    scores = token_scores(logits, logits.argmax(-1))
    return not bool(scores[:, 0].isnan().any())


def token_scores(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return log-probability and margin of one token per row, of shape [rows, 2]. `logits` are of
    shape [rows, vocabulary], `tokens` of shape [rows]. The scores of a row do not depend on the
    other rows."""
    rows = max(1, PIECE_BYTES[logits.device.type == "cuda"] // (4 * logits.shape[-1]))
    chosen = tokens.unsqueeze(1)
    if len(logits) <= rows:
        return _scores_of(logits, chosen)
    pieces = zip(logits.split(rows), chosen.split(rows), strict=True)
    return torch.cat([_scores_of(*piece) for piece in pieces])


def _scores_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    likely = logits.float().log_softmax(-1)  # its own conversion is 14 times as slow on a CPU
    chosen = likely.gather(1, tokens)
    other = likely.scatter_(1, tokens, -torch.inf).amax(-1, keepdim=True)
    return torch.cat([chosen, chosen - other], dim=1)


@dataclass(kw_only=True, slots=True)
class Confidence:
    """The confidence of one caption, summed up token by token."""

    total: float = 0.0
    """Sum of the log-probabilities."""
    tokens: int = 0
    margin: float = math.inf
    """The least margin."""
    index: int = 0
    """Index of the token with the least margin."""

    @classmethod
    def of(cls, scores: Sequence[Sequence[float]]) -> "Confidence":
        """Sum up the scores of a caption's tokens, of shape [tokens, 2]."""
        confidence = cls()
        for pair in scores:
            confidence.add(*pair)
        return confidence

    def add(self, log_probability: float, margin: float) -> None:
        self.total += log_probability
        if margin < self.margin:
            self.margin, self.index = margin, self.tokens
        self.tokens += 1

    @property
    def is_finite(self) -> bool:
        """Whether the logits could be compared: none was NaN or positive infinity, and in each step
        one was finite. A single one may be negative infinity: a model rules tokens out so."""
        return not math.isnan(self.total)

    def fields(self, offset_of: Callable[[int], int | None]) -> dict[str, Any]:
        """Return the fields of a record; none if a logit was infinite or NaN. `offset_of` returns
        where in the text a token begins."""
        if not (self.tokens and math.isfinite(self.total) and math.isfinite(self.margin)):
            return {}
        return {
            "logprob": _rounded(self.total / self.tokens),
            "margin": _rounded(self.margin),
            "margin_at": offset_of(self.index),
        }


def _rounded(value: float) -> float:
    return round(value, DIGITS) + 0.0  # never -0.0


def offset_in(text: str, before: str, whole: str) -> int | None:
    """Return the place in a caption at which a token begins; None in an empty one. `whole` is the
    unstripped text of all tokens, `before` that of the tokens before it. What lies outside of the
    caption, such as its end token, counts as its first or last character."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False))
    at = sum(1 for _ in same) - (len(whole) - len(whole.lstrip()))
    return max(0, min(at, len(text) - 1)) if text else None


class LogitsWatch:
    """Scores the tokens of one call of `generate`. It is the first logits processor, which gets the
    raw logits. A step's tokens are known in the next step, so one step's logits are kept."""

    def __init__(self, *, keeps_first: bool = False) -> None:
        self._keeps_first = keeps_first
        self.first: torch.Tensor | None = None
        """The logits of the first step if they are kept, of shape [rows, vocabulary]."""
        self._logits: torch.Tensor | None = None
        self._tokens: list[torch.Tensor] = []
        self._scores: list[torch.Tensor] = []

    def sample(
        self, model: Half, input_ids: torch.Tensor, logits_processor: list[Any], **kwargs: Any
    ) -> Any:
        """Decode as `generate` does; its argument `custom_generate`."""
        logits_processor.insert(0, self)
        return type(model)._sample(model, input_ids, logits_processor=logits_processor, **kwargs)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores [rows, vocabulary] as they are. `ids` are of shape [rows, tokens]."""
        self._score(ids[:, -1])
        if self._keeps_first and self.first is None:
            self.first = scores.clone()
        self._logits = scores
        return scores

    def _score(self, tokens: torch.Tensor) -> None:
        """Score the tokens that the last logits led to."""
        if self._logits is not None:
            self._tokens.append(tokens.to(self._logits.device))
            self._scores.append(token_scores(self._logits, self._tokens[-1]))
            self._logits = None

    def confidences(self, new: torch.Tensor, counts: Sequence[int]) -> list[Confidence | None]:
        """Return the confidence of each row after its first `counts` tokens. `new` are the tokens
        that `generate` returned, of shape [rows, tokens], on the host. None: its steps were not
        seen."""
        steps = new.shape[1]
        if len(self._tokens) == steps - 1:
            self._score(new[:, -1])
        # On a GPU, `generate` may compute some steps more than it returns.
        seen = self._tokens[:steps]
        if not seen or not torch.equal(torch.stack(seen, dim=1).cpu(), new):
            return [None] * len(new)
        rows = torch.stack(self._scores[:steps], dim=1).tolist()
        return [Confidence.of(row[:count]) for row, count in zip(rows, counts, strict=True)]

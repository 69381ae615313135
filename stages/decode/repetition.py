"""Detects repetitive captions and chooses the parameters of their retry."""

from dataclasses import replace

from artifacts.captions import Ended
from stages.decode.generation import SamplingParams

TIMES = 3
"""Times that the same has to be said at the end of a caption."""
LETTERS = 40
"""Letters at least that those times have together: `ha ha ha` is no circle."""
PENALTY, NGRAM = 1.1, 4
"""How a caption is said again: words said before are less likely, and no four tokens come twice."""


def is_repetitive(text: str, finish_reason: Ended) -> bool:
    """Return whether a caption was cut while it said the same over and over, the last time maybe
    in part."""
    return finish_reason == "length" and any(
        _repeated(text, period) >= max(TIMES * period, LETTERS)
        for period in range(1, len(text) // TIMES + 1)
    )


def _repeated(text: str, period: int) -> int:
    """Return how many letters at the end repeat those one period before, with the first of
    them."""
    count = 0
    for now, before in zip(reversed(text), reversed(text[:-period]), strict=False):
        if now != before:
            break
        count += 1
    return count + period if count else 0


def retry_params(params: SamplingParams) -> SamplingParams:
    """Return how words are chosen when a caption is said again."""
    return replace(
        params,
        repetition_penalty=max(params.repetition_penalty or 1.0, PENALTY),
        no_repeat_ngram=params.no_repeat_ngram or NGRAM,
    )

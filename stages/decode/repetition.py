"""Detects repetitive captions and chooses the parameters of their retry."""

from dataclasses import replace

from artifacts.captions import Ended
from stages.decode.generation import SamplingParams

TIMES = 3
"""Number of repetitions at the end of a caption that count as repetitive."""
LETTERS = 40
"""Minimum number of characters of these repetitions together: `ha ha ha` is too short."""
PENALTY, NGRAM = 1.1, 4
"""Parameters of the retry: a repetition penalty, and no four tokens twice."""


def is_repetitive(text: str, finish_reason: Ended) -> bool:
    """Return whether a caption reached its token limit while it repeated the same text. The last
    repetition may be incomplete."""
    return finish_reason == "length" and any(
        _repeated(text, period) >= max(TIMES * period, LETTERS)
        for period in range(1, len(text) // TIMES + 1)
    )


def _repeated(text: str, period: int) -> int:
    """Return how many characters at the end are periodic, the first period included."""
    count = 0
    for now, before in zip(reversed(text), reversed(text[:-period]), strict=False):
        if now != before:
            break
        count += 1
    return count + period if count else 0


def retry_params(params: SamplingParams) -> SamplingParams:
    """Return the sampling parameters for a retry."""
    return replace(
        params,
        repetition_penalty=max(params.repetition_penalty or 1.0, PENALTY),
        no_repeat_ngram=params.no_repeat_ngram or NGRAM,
    )

"""Reads from the log probabilities of a server's first token how probable labels are.

Servers state the most probable tokens alone. For a label outside them only a bound is known: it is
no more probable than the least of them, or than the token that it begins with.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

TOP = 20
"""Tokens whose log probability is requested: the most that OpenAI's protocol has."""
BLANKS = " \t\r\n\u2581\u0120"
"""What may stand before the letters of a token. Some servers write tokens as their tokenizer does,
with U+2581 or U+0120 for a blank."""


class LabelReading(NamedTuple):
    """The log probabilities of the labels of a probe."""

    scores: list[float]
    is_bounded: bool
    """Whether that of some label is only a bound."""


def label_scores(choice: Mapping[str, Any], labels: Sequence[str]) -> LabelReading:
    """Return how probable labels are as the first token of a choice of a chat completion. A token
    is a label if it has its letters, with or without blanks before them; of several, the most
    probable one counts. Raises LookupError or TypeError for a choice without log probabilities,
    and ValueError for one whose log probabilities are no numbers up to 0."""
    first = choice["logprobs"]["content"][0]
    tokens = [
        (str(token["token"]).lstrip(BLANKS), token["logprob"]) for token in first["top_logprobs"]
    ]
    if not tokens:
        raise LookupError("no tokens")
    for _, score in tokens:
        if not isinstance(score, int | float) or not isfinite(score) or score > 0.01:
            raise ValueError(str(score)[:100])
    least = float(min(score for _, score in tokens))
    scores, is_bounded = list[float](), False
    for label in labels:
        exact = [score for text, score in tokens if text == label]
        begun = [score for text, score in tokens if text and label.startswith(text)]
        is_bounded = is_bounded or not exact
        scores.append(min(0.0, float(max(exact or begun or [least]))))
    return LabelReading(scores, is_bounded)

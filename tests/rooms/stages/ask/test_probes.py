"""Labels in the log probabilities that servers state, and what is only a bound."""

import math
from typing import Any

import pytest

from stages.ask.probes import label_scores


def choice(**tokens: float) -> dict[str, Any]:
    top = [{"token": t.replace("_", " "), "logprob": math.log(p)} for t, p in tokens.items()]
    return {"logprobs": {"content": [{**top[0], "top_logprobs": top}]}}


@pytest.mark.parametrize(
    ("tokens", "labels", "expected", "is_bounded"),
    [
        ({"Yes": 0.6, "No": 0.3}, ("Yes", "No"), (0.6, 0.3), False),
        ({"_Yes": 0.5, "Yes": 0.2, "No": 0.3}, ("Yes", "No"), (0.5, 0.3), False),
        ({"\u2581Yes": 0.5, "\u0120No": 0.3}, ("Yes", "No"), (0.5, 0.3), False),
        ({"yes": 0.6, "YES": 0.2, "No": 0.1}, ("Yes", "No"), (0.1, 0.1), True),
        ({"Yes": 0.6, "x": 0.01}, ("Yes", "No"), (0.6, 0.01), True),
        ({"water": 0.7, "x": 0.1}, ("watercolor", "oil"), (0.7, 0.1), True),
        ({"1": 0.7, "2": 0.1}, ("1", "10"), (0.7, 0.7), True),
    ],
)
def test_a_label_is_a_token_with_its_letters(
    tokens: dict[str, float], labels: tuple[str, ...], expected: Any, is_bounded: bool
) -> None:
    reading = label_scores(choice(**tokens), labels)
    assert [math.exp(score) for score in reading.scores] == pytest.approx(expected)
    assert reading.is_bounded is is_bounded


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": []}])
def test_an_answer_without_log_probabilities_is_refused(logprobs: Any) -> None:
    with pytest.raises((LookupError, TypeError)):
        label_scores({"logprobs": logprobs}, ("Yes", "No"))
    with pytest.raises(LookupError):
        label_scores({"logprobs": {"content": [{"top_logprobs": []}]}}, ("Yes", "No"))


@pytest.mark.parametrize("score", [math.nan, math.inf, 1.0, "many", None])
def test_a_log_probability_that_is_none_is_refused(score: Any) -> None:
    top = [{"token": "Yes", "logprob": score}]
    with pytest.raises(ValueError):
        label_scores({"logprobs": {"content": [{"top_logprobs": top}]}}, ("Yes", "No"))

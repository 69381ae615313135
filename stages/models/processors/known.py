"""Computes a fact about a processor once."""

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from stages.models.protocols import Processor

Answer = TypeVar("Answer")
_KNOWN: "WeakKeyDictionary[Any, dict[Any, Any]]" = WeakKeyDictionary()
"""Results of tests of a processor, for its lifetime."""


def known(processor: Processor, question: str, find: Callable[[], Answer]) -> Answer:
    """Return the result of `find` for this processor and its chat template, computed once."""
    answers = _KNOWN.setdefault(processor, {})
    key = (question, processor.chat_template, processor.tokenizer.chat_template)
    if repr(key) not in answers:
        answers[repr(key)] = find()
    answer: Answer = answers[repr(key)]
    return answer

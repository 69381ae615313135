"""Matches text against untrusted regular expressions and schemas in bounded time and memory.
llguidance matches without backtracking and limits its steps.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

LITERAL = re.compile(r"(?:[\w-]|\\?\.|\\-)+", re.ASCII)
"""Expressions that are names, whose points may stand for any letter."""
MOST_LETTERS = 2000
"""Letters of an expression."""


@lru_cache(maxsize=256)
def matcher_of(grammar: str) -> Any:
    """Return a matcher of llguidance, which `accepts` copies for each text. Raises ValueError for a
    grammar that cannot be matched, such as one with a look-ahead."""
    from llguidance import LLMatcher

    found = LLMatcher(_bytes(), grammar, log_level=0)
    if found.is_error():
        raise ValueError(" ".join(found.get_error().split())[:200])
    return found


def accepts(grammar: str, text: str) -> bool:
    """Return whether all of a text is of a grammar. Raises ValueError for a grammar or a text that
    is too much to be matched."""
    matcher, spelled = matcher_of(grammar).deep_copy(), text.encode()
    whole = matcher.try_consume_tokens(list(spelled)) == len(spelled)
    if matcher.is_error():
        raise ValueError(" ".join(matcher.get_error().split())[:200])
    return bool(whole and matcher.is_accepting())


def ends_with(expression: str, path: str) -> bool:
    """Return whether an expression meets a module's path, or the end of it behind a point, as PEFT
    matches it. Raises ValueError for one that cannot be matched."""
    if len(expression) > MOST_LETTERS:
        raise ValueError(f"it has {len(expression):,} letters, and {MOST_LETTERS:,} are taken")
    if (name := _name(expression)) is not None:
        return name.fullmatch(path) is not None
    from llguidance import LLMatcher

    return accepts(LLMatcher.grammar_from_regex(rf"(.*\.)?({expression})"), path)


def string_follows(schema: Mapping[str, Any], text: str) -> bool:
    """Return whether a text is what a JSON Schema says of it. Raises ValueError where that cannot
    be matched."""
    from llguidance import LLMatcher

    # As llguidance writes texts: the last of ASCII's control characters only by its number.
    value = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    return accepts(LLMatcher.grammar_from_json_schema(json.dumps(schema, sort_keys=True)), value)


@lru_cache(maxsize=8192)
def _name(expression: str) -> re.Pattern[str] | None:
    """Return the pattern of an expression that is a name, in which `re` has no ways to go back to;
    None for every other."""
    return re.compile(rf"(.*\.)?({expression})") if LITERAL.fullmatch(expression) else None


@lru_cache(maxsize=1)
def _bytes() -> Any:
    """Return a tokenizer whose tokens are bytes."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")

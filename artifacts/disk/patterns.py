"""Matches text against untrusted regular expressions and schemas in bounded time and memory.
llguidance matches without backtracking and limits its steps.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from artifacts.disk.json_shapes import Json

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from llguidance import LLMatcher, LLTokenizer

LITERAL = re.compile(r"\^?(?:[\w-]|\\?\.|\\-)+\$?", re.ASCII)
"""Expressions that are plain names or ends of them, whose points may match any character."""
_PIECES = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)
"""Parts of an expression: an escape, a class, or another character."""
MAX_LETTERS = 2000
"""Largest number of characters of an expression."""


@lru_cache(maxsize=256)
def matcher_of(grammar: str) -> "LLMatcher":
    """Return llguidance's matcher, which `accepts` copies for each text. Raises ValueError for an
    unsupported grammar, such as one with a look-ahead."""
    from llguidance import LLMatcher

    matcher = LLMatcher(_bytes(), grammar, log_level=0)
    if matcher.is_error():
        raise ValueError(" ".join(matcher.get_error().split())[:200])
    return matcher


def accepts(grammar: str, text: str) -> bool:
    """Return whether a grammar matches a whole text. Raises ValueError if matching exceeds the
    limits."""
    matcher, spelled = matcher_of(grammar).deep_copy(), text.encode()
    whole = matcher.try_consume_tokens(list(spelled)) == len(spelled)
    if matcher.is_error():
        raise ValueError(" ".join(matcher.get_error().split())[:200])
    return bool(whole and matcher.is_accepting())


def ends_with(expression: str, path: str) -> bool:
    """Return whether an expression matches a module's path, or its end after a point, as in PEFT:
    with `^` the whole path alone. Raises ValueError for an unsupported one."""
    if len(expression) > MAX_LETTERS:
        raise ValueError(f"{len(expression):,} characters, and at most {MAX_LETTERS:,} are allowed")
    if (name := _name(expression)) is not None:
        return name.fullmatch(path) is not None
    return accepts(_grammar(expression), path)


def string_follows(schema: Mapping[str, Json], text: str) -> bool:
    """Return whether a text satisfies a JSON Schema. Raises ValueError for an unsupported
    schema."""
    from llguidance import LLMatcher

    # As llguidance writes strings: it escapes the last ASCII control character.
    value = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    return accepts(LLMatcher.grammar_from_json_schema(json.dumps(schema, sort_keys=True)), value)


def validator_of(schema: Mapping[str, Json]) -> "Draft202012Validator":
    """Return jsonschema's validator of a schema. It matches strings by llguidance: Python's `re`
    may never finish. Raises ValueError for an invalid schema, and while it validates, for an
    unsupported one."""
    from jsonschema import Draft202012Validator, SchemaError, ValidationError
    from jsonschema.validators import extend

    def by_engine(
        _: Draft202012Validator, __: Json, value: Json, schema: Mapping[str, Json]
    ) -> Iterator[ValidationError]:
        constraints = {name: schema[name] for name in ("pattern", "format") if name in schema}
        if isinstance(value, str) and not string_follows({"type": "string", **constraints}, value):
            yield ValidationError("the text is not of that form")

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(error.message) from error
    return extend(Draft202012Validator, {"pattern": by_engine, "format": by_engine})(schema)


@lru_cache(maxsize=8192)
def _name(expression: str) -> re.Pattern[str] | None:
    """Return the compiled pattern of a plain name, on which `re` cannot backtrack; None for other
    expressions."""
    return re.compile(rf"(.*\.)?({expression})") if LITERAL.fullmatch(expression) else None


@lru_cache(maxsize=256)
def _grammar(expression: str) -> str:
    """Return the grammar of whole paths. llguidance has no `^`, so an alternative that begins with
    it gets nothing before it; elsewhere `^` stays, and is refused."""
    from llguidance import LLMatcher

    alternatives, depth = [""], 0
    for piece in _PIECES.findall(expression):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and not depth:
            alternatives.append("")
        else:
            alternatives[-1] += piece
    return LLMatcher.grammar_from_regex(
        "|".join(
            f"({branch.lstrip('^')})" if branch.startswith("^") else rf"(.*\.)?({branch})"
            for branch in alternatives
        )
    )


@lru_cache(maxsize=1)
def _bytes() -> "LLTokenizer":
    """Return a tokenizer with one token per byte."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")

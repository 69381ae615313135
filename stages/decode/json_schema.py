"""Parses the JSON Schema of captions, and writes its canonical text."""

import json
from functools import lru_cache
from typing import Any, NoReturn

from artifacts.disk.json_shapes import Json
from artifacts.disk.patterns import validator_of
from artifacts.errors import UsageError
from artifacts.packages import require
from stages.decode.schema_bounds import closed, unknown_words

COMPACT = (",", ":")
ANY_OBJECT = '{"type":"object"}'
EMPTY_OBJECT = '{"additionalProperties":false,"type":"object"}'
UNCLOSED = frozenset({ANY_OBJECT, EMPTY_OBJECT})
"""Schemas, of requests only, without known properties: the grammar takes them as they are."""


@lru_cache(maxsize=8)
def canonical(text: str) -> str:
    """Return the canonical text of a valid schema. Keys are sorted, except property names, whose
    order is the order of generation. Raises UsageError."""
    try:
        schema = json.loads(text, parse_constant=_no_number)
        if not isinstance(schema, dict):
            raise UsageError("--schema is not an object", hint='Begin with {"type": "object", …')
        closed(schema)
        _check_grammar(text)
        return json.dumps(_sorted(schema), ensure_ascii=False, separators=COMPACT)
    except ValueError as error:
        raise UsageError(f"--schema is not JSON: {error}", hint="Give a JSON Schema") from error
    except RecursionError as error:
        raise UsageError("--schema is nested too deeply", hint="Ask for less at once") from error


def fields_of(answer: str) -> dict[str, Json]:
    """Return the fields of an answer, in the order of generation."""
    fields: dict[str, Json] = json.loads(answer)
    return fields


def is_cut(answer: str) -> bool:
    """Return whether an answer under a schema ends before its last bracket."""
    try:
        json.loads(answer)
    except ValueError:
        return True
    return False


def follows(text: str, answer: str) -> bool:
    """Return whether an edited answer follows a schema."""
    try:
        value = json.loads(answer, parse_constant=_no_number)
        return bool(_validator(text).is_valid(value))
    except (ValueError, RecursionError, OverflowError):
        return False


@lru_cache(maxsize=8)
def _validator(text: str) -> Any:
    return validator_of(closed(json.loads(text)))


@lru_cache(maxsize=8)
def ignored_note(text: str) -> str:
    """Return a note on words of a schema that are no keywords; empty: there are none."""
    unknown = unknown_words(json.loads(text)) if text else []
    listed = ", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else "")
    return f"--schema: not a keyword of JSON Schema, so without effect: {listed}" if unknown else ""


def grammar_of(text: str) -> str:
    """Return the grammar of answers for llguidance: one line, without spaces."""
    from llguidance import LLMatcher

    given = json.loads(text)
    given = given if text in UNCLOSED else closed(given)
    schema = json.dumps(given, ensure_ascii=False, separators=COMPACT)
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
    except ValueError as error:  # such as a number that is too large
        raise _cannot_follow(str(error)) from error


def _check_grammar(text: str) -> None:
    """Raise UsageError, with llguidance's message, for a schema that has no grammar."""
    require("--schema", "llguidance")
    from llguidance import LLMatcher

    is_invalid, messages = LLMatcher.validate_grammar_with_warnings(grammar_of(text))
    if is_invalid and "coerce_one_of" in messages[0]:
        raise UsageError(
            "--schema is not supported: a value may be of several schemas of a oneOf",
            hint="Use anyOf, or change the schemas so that no value matches more than one of them",
        )
    if is_invalid:
        raise _cannot_follow(messages[0])


def _cannot_follow(why: str) -> UsageError:
    return UsageError(
        f"--schema is not supported: {' '.join(why.split())[:200]}",
        hint="Remove that, or describe it in the prompt",
    )


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _sorted(node: Json, *, names: bool = False) -> Json:
    """Return a schema with sorted keys; property names keep their order."""
    if isinstance(node, list):
        return [_sorted(child) for child in node]
    if not isinstance(node, dict):
        return node
    keys = list(node) if names else sorted(node)
    return {key: _sorted(node[key], names=key == "properties" and not names) for key in keys}

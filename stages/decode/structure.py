"""Reads the JSON Schema that captions follow: its canonical text, and what it means for those who
make and write them. Knows no model."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from artifacts.errors import EnvironmentFault, UsageError
from stages.decode.bounds import bounded, closed
from stages.decode.closing import Rest

COMPACT = (",", ":")
WHOLE_NUMBERS = 2**63
"""Size from which a whole number has no place in a column of counts."""
KINDS = {"string": "text", "integer": "count", "number": "number", "boolean": "truth"}
"""Type of a property → what its column holds; of every other it is JSON text."""


@lru_cache(maxsize=8)
def canonical(text: str) -> str:
    """Return the one way to write a schema, checked. Keys are sorted, but for those of properties,
    which are said in their order. Raises UsageError."""
    try:
        schema = json.loads(text, parse_constant=_no_number)
        if not isinstance(schema, dict):
            raise UsageError("--schema holds no object", hint='Begin with {"type": "object", …')
        _check_grammar(grammar_of(text))
        return json.dumps(_sorted(schema), ensure_ascii=False, separators=COMPACT)
    except ValueError as error:
        raise UsageError(f"--schema holds no JSON: {error}", hint="Give a JSON Schema") from error
    except RecursionError as error:
        raise UsageError("--schema is nested too deep", hint="Ask for less at once") from error


def grammar_of(text: str) -> str:
    """Return the schema whose answers are said: that of the text, made so that they end."""
    return json.dumps(closed(json.loads(text)), ensure_ascii=False, separators=COMPACT)


@lru_cache(maxsize=8)
def rest_of(text: str) -> Rest:
    """Return how many bytes the parts of an answer may take."""
    return Rest(bounded(json.loads(text)))


@lru_cache(maxsize=8)
def columns_of(text: str) -> dict[str, str]:
    """Return property → what a column of it holds."""
    return {name: _column(each.schema) for name, each in bounded(json.loads(text)).items()}


def fields_of(said: str) -> dict[str, Any]:
    """Return what an answer holds, in the order in which it was said."""
    fields: dict[str, Any] = json.loads(said)
    return fields


def texts_within(said: str) -> list[str]:
    """Return the values of an answer as texts, as far as they were said before they were closed."""
    values = fields_of(said).values()
    return [v if isinstance(v, str) else json.dumps(v)[:-1] for v in values]


def words_of(text: str, fields: Mapping[str, Any]) -> str | None:
    """Return an answer in words, of a schema of one property that is a text, or a list of them;
    None where it says more."""
    columns = columns_of(text)
    if [*columns.values()] not in (["text"], ["texts"]):
        return None
    value = next(iter(fields.values()), "")
    if isinstance(value, list):
        return ", ".join(value)
    return value if isinstance(value, str) else None


def check_room(text: str, limit: int) -> None:
    """Raise UsageError where so many tokens need not be enough for an answer."""
    needed = rest_of(text).tokens
    if limit < needed:
        raise UsageError(
            f"--max-new-tokens {limit} may not be enough for --schema: it takes up to {needed}",
            hint=f"Use --max-new-tokens {needed} or more, or a smaller schema",
        )


def options() -> dict[str, Any]:
    """Return how a grammar writes JSON: in one line, without spaces."""
    return {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}


def _check_grammar(schema: str) -> None:
    """Raise UsageError for what no grammar can be made of, in its maker's words."""
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise EnvironmentFault(
            f"--schema needs llguidance, which cannot be imported: {error}",
            hint="Run make setup, or pip install llguidance",
        ) from error
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=options())
    wrong, words = LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong:
        raise UsageError(
            f"--schema cannot be followed: {' '.join(words[0].split())[:200]}",
            hint="Leave that out, or ask for it in words",
        )


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _sorted(node: Any, *, names: bool = False) -> Any:
    """Return a schema with its keys in one order, but for the names of properties."""
    if isinstance(node, list):
        return [_sorted(each) for each in node]
    if not isinstance(node, dict):
        return node
    keys = list(node) if names else sorted(node)
    return {key: _sorted(node[key], names=key == "properties" and not names) for key in keys}


def _column(schema: Mapping[str, Any]) -> str:
    found = _types(schema) - {"null"}
    if found == {"integer", "number"}:
        found = {"number"}
    (kind,) = found if len(found) == 1 else ("",)
    if kind == "array" and _types(schema.get("items", {})) == {"string"}:
        return "texts"
    sizes = [abs(schema.get(name, 0)) for name in ("minimum", "maximum")]
    if kind == "integer" and max(sizes) >= WHOLE_NUMBERS:
        return "number"
    return KINDS.get(kind, "text")


def _types(schema: Mapping[str, Any]) -> set[str]:
    """Return the names of the types that a value may have."""
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return {name for each in schema[word] for name in _types(each)}
    if "const" in schema or "enum" in schema:
        return {_type(value) for value in schema.get("enum", [schema.get("const")])}
    return {schema["type"]} if isinstance(schema.get("type"), str) else set()


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", list: "array", type(None): "null"}
    return names.get(type(value), "object")

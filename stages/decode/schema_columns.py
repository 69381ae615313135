"""Derives the columns of a JSON Schema, and the plain text of captions that follow it."""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from stages.decode.schema_bounds import closed

WHOLE_NUMBERS = 2**63
"""Integers of this size or more do not fit a column of counts."""
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
KINDS = {"string": "text", "integer": "count", "number": "number", "boolean": "truth"}
"""Type of a property → column type; every other type becomes JSON text."""


@lru_cache(maxsize=8)
def columns_of(text: str) -> dict[str, str]:
    """Return property name → column type."""
    properties = closed(json.loads(text))["properties"]
    return {name: _column(schema) for name, schema in properties.items()}


def plain_text_of(text: str, fields: Mapping[str, Any]) -> str | None:
    """Return an answer as plain text if the schema has a single property that is a text or a list
    of texts; otherwise None."""
    kinds = [*columns_of(text).values()]
    value = next(iter(fields.values()), "")
    if kinds == ["texts"]:
        return ", ".join(value or ())
    # Lists of anything else are in a column of texts, too.
    return value if kinds == ["text"] and isinstance(value, str) else None


def _column(schema: Mapping[str, Any]) -> str:
    branches = [*_branches(schema)]
    types = {name for branch in branches for name in _types(branch)} - {"null"}
    if types == {"integer", "number"}:
        types = {"number"}
    kind = types.pop() if len(types) == 1 else ""
    if kind == "array" and len(branches) == 1:
        items = {name for branch in _branches(schema.get("items", {})) for name in _types(branch)}
        return "texts" if items == {"string"} else "text"
    named = [value for branch in branches for value in _values(branch)]
    sizes = [branch[name] for branch in branches for name in BOUNDS if name in branch] + named
    if kind == "integer" and any(abs(size) >= WHOLE_NUMBERS for size in sizes if size is not None):
        return "text"
    return KINDS.get(kind, "text")


def _branches(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the alternatives of a value's schema."""
    choices = schema.get("anyOf", schema.get("oneOf"))
    if choices is None:
        yield schema
    for choice in choices or ():
        yield from _branches(choice)


def _types(schema: Mapping[str, Any]) -> set[str]:
    """Return the type names that a value may have."""
    named = {_type(value) for value in _values(schema)}
    return named or ({schema["type"]} if "type" in schema else set())


def _values(schema: Mapping[str, Any]) -> list[Any]:
    """Return the enumerated values of a property; empty if it has only a type."""
    named: list[Any] = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return named


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", list: "array", type(None): "null"}
    return names.get(type(value), "object")

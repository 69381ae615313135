"""Bounds the length of the rest of an answer under a JSON Schema, and rewrites the schema so that
the bound exists.

An answer must end before its tokens run out. From some point on it takes the bytes that close it
first, by the ranks in `closing.py`; the bounds here hold for that order. They need objects with
known properties, no recursion, and no string whose end has to be searched.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from artifacts.errors import UsageError

ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default"}
    | {"examples", "deprecated", "readOnly", "writeOnly"}
)
"""Keywords that do not restrict an answer."""
WITHIN = frozenset({"properties", "items", "anyOf", "oneOf"})
"""Keywords that hold nested schemas."""
UNBOUNDED = frozenset(
    {"allOf", "not", "if", "then", "else", "patternProperties", "propertyNames", "prefixItems"}
    | {"minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies"}
    | {"contains", "uniqueItems", "additionalItems", "unevaluatedProperties", "unevaluatedItems"}
    | {"$dynamicRef", "$recursiveRef"}
)
"""Rejected keywords: an answer under them cannot be closed with certainty."""


MAX_LETTERS = 1 << 20
"""Maximum size of a schema in characters after its references are expanded."""

MAX_REFERENCES = 100
"""Maximum depth of references that lead to one place."""


@dataclass(kw_only=True, slots=True)
class SchemaRoom:
    """The number of characters that a schema may still grow while its references are expanded."""

    left: int = MAX_LETTERS

    def take(self, node: Mapping[str, Any]) -> None:
        """Count a node of the schema without its nested nodes. Raises UsageError above the
        limit."""
        own = {name: value for name, value in plain(node).items() if name not in WITHIN}
        names = node.get("properties")
        self.left -= len(json.dumps([own, [*names] if isinstance(names, Mapping) else 0]))
        if self.left < 0:
            raise UsageError(
                f"--schema has more than {MAX_LETTERS:,} characters after its references are "
                "expanded",
                hint="Use a smaller schema: each $ref counts with everything that it refers to",
            )


@dataclass(frozen=True, slots=True)
class SchemaPlace:
    """A location in a schema."""

    root: Mapping[str, Any]
    path: str
    """Its property names from the outermost object on, joined with dots."""
    references: tuple[str, ...] = ()
    """References that led to this location."""
    room: SchemaRoom = field(default_factory=SchemaRoom, repr=False, compare=False)

    def at(self, name: str) -> "SchemaPlace":
        return replace(self, path=f"{self.path}.{name}" if self.path else name)

    def error(self, what: str, hint: str) -> UsageError:
        where = f" at `{self.path}`" if self.path else ""
        return UsageError(" ".join(f"--schema{where}: {what}".split()), hint=hint)


def resolve_ref(node: Any, place: SchemaPlace) -> tuple[Mapping[str, Any], SchemaPlace]:
    """Follow references, and return the node with its location."""
    while isinstance(node, Mapping) and "$ref" in node:
        reference = node["$ref"]
        if more := sorted(node.keys() - ANNOTATIONS - {"$ref"}):
            raise place.error(
                f"{more[0]} is not allowed next to $ref", "Move it to the referenced schema"
            )
        if reference in place.references:
            raise place.error(f"{reference} refers to itself", "Write out the levels that you need")
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise place.error(f"$ref {reference} is outside of the file", "Refer to #/$defs/NAME")
        if len(place.references) == MAX_REFERENCES:
            raise place.error(
                f"more than {MAX_REFERENCES} references follow each other",
                "Write out the referenced schemas",
            )
        place = replace(place, references=(*place.references, reference))
        node = _pointed(reference, place)
    if not isinstance(node, Mapping):
        raise place.error("not an object with keywords", 'Write a schema: {"type": "string"}')
    if refused := sorted(UNBOUNDED & node.keys()):
        raise place.error(
            f"{refused[0]} is not supported", "Remove it, or describe it in the prompt"
        )
    place.room.take(node)
    return node, place


def _pointed(reference: str, place: SchemaPlace) -> Any:
    node: Any = place.root
    for part in reference[1:].split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or part not in node:
            raise place.error(f"$ref {reference} does not exist", "Use a name from $defs")
        node = node[part]
    return node


def plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a schema that restrict an answer."""
    return {name: value for name, value in node.items() if name not in ANNOTATIONS}


EXACT = 2**53 - 1
"""Default bound of numbers: every language represents integers up to it exactly."""
CHARACTER = 6
"""Maximum size of one character in bytes: `\\u000a`."""
ROUGH = ("minimum", "maximum")
"""Keywords that bound numbers with a decimal point."""
FORMATS = {"date": 12, "time": 40, "date-time": 60, "uuid": 38}
"""Format of a string → maximum size of its rest in bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounded:
    """The schema of one value under which an answer can always be ended in time."""

    schema: dict[str, Any]
    """The schema with references expanded, objects closed and numbers bounded."""
    max_bytes: int
    """Maximum size of the rest of the value in bytes, from any position in it."""
    fixed: bool = False
    """Whether every value is at most that long, so the model may always choose freely."""


def bounded(root: Mapping[str, Any]) -> dict[str, Bounded]:
    """Return the bounded schemas of an object's properties by name, in order. Raises UsageError."""
    place = SchemaPlace(root, "")
    node = resolve_ref(root, place)[0]
    if node.get("type") != "object" or not node.get("properties"):
        raise place.error("not an object schema with properties", 'Begin with {"type": "object", …')
    _object(node, place)
    place = replace(place, room=SchemaRoom())  # the same references are expanded once more
    return {name: _value(each, place.at(name)) for name, each in node["properties"].items()}


def closed(root: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole schema as input for the grammar. Raises UsageError."""
    place = SchemaPlace(root, "")
    return _object(resolve_ref(root, place)[0], place).schema


def longest(value: Any) -> int:
    """Return the maximum size of a value in bytes, as the grammar writes it."""
    if isinstance(value, Mapping):
        return (
            1 + sum(longest(name) + longest(each) + 2 for name, each in value.items()) + (not value)
        )
    if isinstance(value, list):
        return 2 + sum(longest(each) + 1 for each in value)
    if isinstance(value, float):
        return max(len(repr(value)), _digits(value))
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Each `\n` may be written as `\u000a`, too.
    return len(text.encode()) + (CHARACTER - 1) * (text.count("\\") + text.count("\x7f"))


def _value(given: Any, place: SchemaPlace) -> Bounded:
    node, place = resolve_ref(given, place)
    for word in ("const", "enum"):
        if word in node:
            values = node["enum"] if word == "enum" else [node["const"]]
            if not isinstance(values, list) or not values:
                raise place.error("enum has no values", 'Write ["one", "two"]')
            return Bounded(schema=plain(node), max_bytes=max(map(longest, values)), fixed=True)
    for word in ("anyOf", "oneOf"):
        if word in node:
            if more := sorted(node.keys() - ANNOTATIONS - {word}):
                raise place.error(
                    f"{more[0]} is not allowed next to {word}",
                    f"Move it into each schema of {word}",
                )
            return _choice(word, node[word], place)
    kind = node.get("type")
    if isinstance(kind, list):
        return _choice("anyOf", [{**node, "type": each} for each in kind], place)
    if not isinstance(kind, str) or kind not in _TYPES:
        problem = "it has no type" if kind is None else f"unknown type {kind}"
        raise place.error(problem, f"Use one of {', '.join(_TYPES)}, or an enum")
    return _TYPES[kind](node, place)


def _choice(word: str, options: Any, place: SchemaPlace) -> Bounded:
    if not isinstance(options, list) or not options:
        raise place.error(f"{word} is empty", "List the alternatives")
    found = [_value(each, place) for each in options]
    return Bounded(
        schema={word: [each.schema for each in found]},
        max_bytes=max(each.max_bytes for each in found),
        fixed=all(each.fixed for each in found),
    )


def _object(node: Mapping[str, Any], place: SchemaPlace) -> Bounded:
    properties, required = node.get("properties", {}), node.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        raise place.error("properties must be an object and required a list", "Write {…} and […]")
    if isinstance(node.get("additionalProperties"), Mapping):
        raise place.error(
            "additionalProperties with a schema is not supported",
            "List the properties, each with a type",
        )
    if unknown := [n for n in required if not isinstance(n, str) or n not in properties]:
        raise place.error(f"{unknown[0]} is required but not a property", "Add it to properties")
    found = {name: _value(each, place.at(name)) for name, each in properties.items()}
    return Bounded(
        schema={
            "type": "object",
            "properties": {name: each.schema for name, each in found.items()},
            "required": required,
            "additionalProperties": False,
        },
        max_bytes=2 + sum(longest(name) + 2 + each.max_bytes for name, each in found.items()),
    )


def _array(node: Mapping[str, Any], place: SchemaPlace) -> Bounded:
    if "items" not in node:
        raise place.error("the array has no items", 'Add "items": {"type": "string"}')
    item = _value(node["items"], place.at("[]"))
    minimum = _count(node, "minItems", place)
    max_bytes = 2 + max(minimum, 1) * (item.max_bytes + 1)
    return Bounded(schema=plain(node) | {"items": item.schema}, max_bytes=max_bytes)


def _string(node: Mapping[str, Any], place: SchemaPlace) -> Bounded:
    minimum, form = _count(node, "minLength", place), node.get("format")
    max_bytes = 2 + CHARACTER + minimum
    if form is not None:
        if form not in FORMATS:
            known = ", ".join(FORMATS)
            raise place.error(f"unsupported format {form}", f"Use one of {known}, or none")
        max_bytes += FORMATS[form]
    if "pattern" in node:
        if "maxLength" not in node:
            raise place.error("a pattern without maxLength is unbounded", "Add a maxLength")
        max_bytes += CHARACTER * _count(node, "maxLength", place)
    return Bounded(schema=plain(node), max_bytes=max_bytes)


def _number(node: Mapping[str, Any], place: SchemaPlace) -> Bounded:
    low = [name for name in ("minimum", "exclusiveMinimum") if name in node]
    high = [name for name in ("maximum", "exclusiveMaximum") if name in node]
    if node["type"] == "number":
        # llguidance 1.9.1 generates 1500 for numbers above 1500 and below 1500.5.
        if out := [n for n in (*low, *high, "multipleOf") if n not in ROUGH and n in node]:
            raise place.error(f"{out[0]} is not supported for numbers", "Use minimum and maximum")
    elif "multipleOf" in node and not (low and high):
        raise place.error("a multiple without bounds may never be found", "Add minimum and maximum")
    values = [node[name] for name in (*low, *high)]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise place.error("a bound is not a number", "Write minimum and maximum as numbers")
    bounds = {} if low else {"minimum": min([-EXACT, *values])}
    bounds |= {} if high else {"maximum": max([EXACT, *values])}
    steps = [node["multipleOf"]] if "multipleOf" in node else []
    longest_bound = max((_digits(value) for value in (*values, *steps)), default=0)
    # An unbounded number is closed by one digit, after a sign and a point.
    return Bounded(
        schema=plain(node) | bounds, max_bytes=4 + longest_bound + len(steps) * longest_bound
    )


def _literal(node: Mapping[str, Any], place: SchemaPlace) -> Bounded:
    return Bounded(schema=plain(node), max_bytes=len("false"), fixed=True)


_TYPES: Mapping[str, Callable[[Mapping[str, Any], SchemaPlace], Bounded]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "number": _number,
    "integer": _number,
    "boolean": _literal,
    "null": _literal,
}


def _digits(value: float) -> int:
    """Return the number of characters of a number that is written out."""
    return len(f"{Decimal(repr(value)):f}")


def _count(node: Mapping[str, Any], name: str, place: SchemaPlace) -> int:
    value = node.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise place.error(f"{name} is {value}", "Use a whole number from 0")
    return value

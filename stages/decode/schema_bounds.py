"""Rewrites the JSON Schema of answers for their grammar, and follows the position in an answer.

References are expanded, objects get no other properties than those that they name, and numbers stay
within bounds. Keywords that the grammar would ignore are refused, and so is recursion.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from artifacts.disk.json_shapes import Json
from artifacts.disk.patterns import validator_of
from artifacts.errors import UsageError

ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default"}
    | {"examples", "deprecated", "readOnly", "writeOnly", "minContains", "maxContains"}
    | {"$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary"}
    | {"contentEncoding", "contentMediaType", "contentSchema"}
)
"""Keywords that do not restrict an answer by themselves."""
_LENGTHS = frozenset({"minLength", "maxLength", "pattern", "format"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
OBEYED: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": _LENGTHS,
    "number": _BOUNDS,
    "integer": _BOUNDS,
    "boolean": frozenset(),
    "null": frozenset(),
}
"""Type → keywords that restrict a value of that type. A value of another type ignores them."""
WITHIN = frozenset({"properties", "items", "anyOf", "oneOf"})
"""Keywords that hold nested schemas."""
UNBOUNDED = frozenset(
    {"allOf", "not", "if", "then", "else", "patternProperties", "propertyNames", "prefixItems"}
    | {"minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies"}
    | {"contains", "uniqueItems", "additionalItems", "unevaluatedProperties", "unevaluatedItems"}
    | {"$dynamicRef", "$recursiveRef"}
)
"""Rejected keywords: the grammar cannot hold an answer to them."""
KEYWORDS = UNBOUNDED.union({"$ref", "type", "enum", "const", "anyOf", "oneOf"}, *OBEYED.values())
"""Keywords that restrict an answer. Words that are neither these nor annotations belong to other
programs, and restrict nothing."""


MAX_LETTERS = 1 << 20
"""Maximum size of a schema in characters after its references are expanded."""

MAX_REFERENCES = 100
"""Maximum depth of references that lead to one place."""


@dataclass(kw_only=True, slots=True)
class SchemaRoom:
    """The number of characters that a schema may still grow while its references are expanded."""

    left: int = MAX_LETTERS
    unknown: dict[str, None] = field(default_factory=dict)
    """Words that are no keywords of JSON Schema, in the order of the schema."""

    def take(self, node: Mapping[str, Json]) -> None:
        """Count a node without its nested nodes. Raises UsageError above the limit."""
        self.unknown |= dict.fromkeys(word for word in node if word not in KEYWORDS | ANNOTATIONS)
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

    root: Mapping[str, Json]
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


def resolve_ref(node: Json, place: SchemaPlace) -> tuple[Mapping[str, Json], SchemaPlace]:
    """Follow references to a node and its location. Raises UsageError for a refused keyword."""
    while isinstance(node, Mapping) and "$ref" in node:
        reference = node["$ref"]
        _check_base(node, place)
        _alone("$ref", node, place, "Move it to the referenced schema")
        if reference in place.references:
            raise place.error(f"{reference} refers to itself", "Write out the levels that you need")
        if not isinstance(reference, str) or not f"{reference}/".startswith("#/"):
            raise place.error(
                f"$ref {reference} is a name, or outside of the file", "Refer to #/$defs/NAME"
            )
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
    _check_base(node, place)
    place.room.take(node)
    return node, place


def _pointed(reference: str, place: SchemaPlace) -> Json:
    node: Json = place.root
    for part in reference[1:].split("/")[1:]:
        part = unquote(part).replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or part not in node:
            raise place.error(f"$ref {reference} does not exist", "Use a name from $defs")
        node = node[part]
        _check_base(node, place)
    return node


def _check_base(node: Json, place: SchemaPlace) -> None:
    """Raise UsageError for a nested schema with a base of its own: references in it would lead to
    other places."""
    if isinstance(node, Mapping) and isinstance(node.get("$id"), str) and node is not place.root:
        raise place.error("$id is not supported inside of a schema", "Remove it")


def _alone(word: str, node: Mapping[str, Json], place: SchemaPlace, hint: str) -> None:
    """Raise UsageError for a keyword that restricts the answer, next to one that stands alone."""
    if more := sorted(plain(node).keys() - {word}):
        raise place.error(f"{more[0]} is not allowed next to {word}", hint)


def plain(node: Mapping[str, Json]) -> dict[str, Json]:
    """Return the keywords of a schema that restrict an answer."""
    return {name: value for name, value in node.items() if name in KEYWORDS}


EXACT = 2**53 - 1
"""Default bound of numbers: every language represents integers up to it exactly."""
ROUGH = ("minimum", "maximum")
"""Keywords that bound numbers with a decimal point."""
CHOICES = ("anyOf", "oneOf")
FORMATS = ("date", "time", "date-time", "uuid")
"""Formats of a string that are supported."""
Schema = dict[str, Any]
"""A schema with references expanded, objects closed and numbers bounded."""


def closed(root: Mapping[str, Json]) -> Schema:
    """Return the whole schema as input for the grammar. Raises UsageError."""
    return _object(*_whole(root))


def unknown_words(root: Mapping[str, Json]) -> list[str]:
    """Return the words of a schema that are no keywords of JSON Schema. Raises UsageError."""
    node, place = _whole(root)
    _object(node, place)
    return [*place.room.unknown]


def _whole(root: Mapping[str, Json]) -> tuple[Mapping[str, Json], SchemaPlace]:
    """Return the schema of the whole answer, an object with properties. Raises UsageError."""
    node, place = resolve_ref(root, SchemaPlace(root, ""))
    if other := sorted({"enum", "const", *CHOICES} & node.keys()):
        raise place.error(
            f"{other[0]} is not supported for the whole answer", "Use it for a property"
        )
    if node.get("type") != "object" or not node.get("properties"):
        raise place.error("not an object schema with properties", 'Begin with {"type": "object", …')
    return node, place


def _value(given: Json, place: SchemaPlace) -> Schema:
    node, place = resolve_ref(given, place)
    if "const" in node or "enum" in node:
        return _enumerated(node, place)
    for word in CHOICES:
        if word in node:
            _alone(word, node, place, f"Move it into each schema of {word}")
            return _choice(word, node[word], place)
    kind = node.get("type")
    if isinstance(kind, list):
        return _choice("anyOf", [{**node, "type": name} for name in kind], place)
    if not isinstance(kind, str) or kind not in _TYPES:
        problem = "it has no type" if kind is None else f"unknown type {kind}"
        raise place.error(problem, f"Use one of {', '.join(_TYPES)}, or an enum")
    return _TYPES[kind](node, place)


def _enumerated(node: Mapping[str, Json], place: SchemaPlace) -> Schema:
    """Return the schema of those values of `enum` or `const` that other keywords accept."""
    if more := sorted((WITHIN | {"additionalProperties"}) & node.keys()):
        raise place.error(
            f"{more[0]} is not allowed next to enum and const", "Leave out values, or move it"
        )
    values = node.get("enum", [node["const"]] if "const" in node else [])
    if not isinstance(values, list) or not values:
        raise place.error("enum has no values", 'Write ["one", "two"]')
    beside = {name: value for name, value in plain(node).items() if name != "enum"}
    try:
        values = [*filter(validator_of(beside).is_valid, values)] if beside else values
    except (ValueError, ArithmeticError) as error:
        raise place.error(str(error)[:200], "Leave out what stands next to enum") from error
    if not values:
        raise place.error("no value of enum is valid", f"Check {', '.join(sorted(beside))}")
    return {"enum": values}


def _choice(word: str, options: Json, place: SchemaPlace) -> Schema:
    if not isinstance(options, list) or not options:
        raise place.error(f"{word} is empty", "List the alternatives")
    return {word: [_value(option, place) for option in options]}


def _object(node: Mapping[str, Json], place: SchemaPlace) -> Schema:
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
    return {
        "type": "object",
        "properties": {name: _value(schema, place.at(name)) for name, schema in properties.items()},
        "required": required,
        "additionalProperties": False,
    }


def _array(node: Mapping[str, Json], place: SchemaPlace) -> Schema:
    if "items" not in node:
        raise place.error("the array has no items", 'Add "items": {"type": "string"}')
    _check_count(node, "minItems", place)
    return _own(node) | {"items": _value(node["items"], place.at("[]"))}


def _string(node: Mapping[str, Json], place: SchemaPlace) -> Schema:
    _check_count(node, "minLength", place)
    if (form := node.get("format")) is not None and form not in FORMATS:
        formats = ", ".join(FORMATS)
        raise place.error(f"unsupported format {form}", f"Use one of {formats}, or none")
    return _own(node)


def _number(node: Mapping[str, Json], place: SchemaPlace) -> Schema:
    low = [name for name in ("minimum", "exclusiveMinimum") if name in node]
    high = [name for name in ("maximum", "exclusiveMaximum") if name in node]
    if node["type"] == "number":
        # llguidance 1.9.1 generates 1500 for numbers above 1500 and below 1500.5.
        if out := [n for n in (*low, *high, "multipleOf") if n not in ROUGH and n in node]:
            raise place.error(f"{out[0]} is not supported for numbers", "Use minimum and maximum")
    elif "multipleOf" in node and not (low and high):
        raise place.error("a multiple without bounds may never be found", "Add minimum and maximum")
    values = [node[name] for name in (*low, *high)]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        raise place.error("a bound is not a number", "Write minimum and maximum as numbers")
    bounds = {} if low else {"minimum": min([-EXACT, *numbers])}
    bounds |= {} if high else {"maximum": max([EXACT, *numbers])}
    return _own(node) | bounds


def _literal(node: Mapping[str, Json], place: SchemaPlace) -> Schema:
    return _own(node)


_TYPES: Mapping[str, Callable[[Mapping[str, Json], SchemaPlace], Schema]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "number": _number,
    "integer": _number,
    "boolean": _literal,
    "null": _literal,
}


def _own(node: Mapping[str, Json]) -> Schema:
    """Return the type of a value, and the keywords that restrict values of that type."""
    return {n: value for n, value in node.items() if n == "type" or n in OBEYED[str(node["type"])]}


def _check_count(node: Mapping[str, Json], name: str, place: SchemaPlace) -> None:
    value = node.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise place.error(f"{name} is {value}", "Use a whole number from 0")


QUOTE, BACKSLASH = ord('"'), ord("\\")
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
IN_TEXT = b'"' + LETTERS + b" " + b"9876543210" + b"-_,;:!?'.+"
"""Bytes that close a string, best first: its quote, then bytes that need no escape. Digits come
before the point and sign that a time may continue with, letters before them: `Z` ends a time."""
BETWEEN = b'}],:"' + b"ntfrualse" + b"9876543210" + b".-"
"""The same outside of strings. Digits are in descending order, or `0.000` would never exceed 0."""


def ranks(first: bytes) -> list[int]:
    """Return the rank of each byte; unlisted bytes come last. UTF-8 continuation bytes come before
    bytes that start a character."""
    order = {byte: index for index, byte in enumerate(first)}
    return [order.get(byte, 256 + (byte >= 0xC0) + (byte == BACKSLASH)) for byte in range(256)]


class JsonPosition:
    """The position inside an answer that is being generated."""

    def __init__(self) -> None:
        self._depth = 0
        self._escaped = False
        self.in_text = False
        self.done = False
        """Whether the answer is complete."""

    def feed(self, data: bytes) -> None:
        for byte in data:
            self._feed(byte)

    def _feed(self, byte: int) -> None:
        if self.in_text:
            if not self._escaped and byte == QUOTE:
                self.in_text = False
            self._escaped = not self._escaped and byte == BACKSLASH
        elif byte == QUOTE:
            self.in_text = True
        elif byte in b"{[":
            self._depth += 1
        elif byte in b"}]":
            self._depth -= 1
            self.done = not self._depth

"""Ends a JSON answer under a schema before its tokens run out: bounds what is left, and closes it.

From some point on, the answer takes the bytes that close it first, by the ranks of this module. A
bound is the maximum size of the rest of an answer in bytes, in that order. Bounds need objects with
known properties, no recursion, and no string whose end has to be searched. The module rewrites the
schema so that the bound exists.

The module tracks the position inside the answer. When only as many bytes are left as the bound
states, the current value is closed: a string gets its quote, a list its bracket. Outside such
values every byte brings the end nearer, and the model chooses freely.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from artifacts.errors import UsageError
from artifacts.patterns import validator_of

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
"""Rejected keywords: an answer under them cannot be closed with certainty."""
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

    def take(self, node: Mapping[str, Any]) -> None:
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


def _pointed(reference: str, place: SchemaPlace) -> Any:
    node: Any = place.root
    for part in reference[1:].split("/")[1:]:
        part = unquote(part).replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or part not in node:
            raise place.error(f"$ref {reference} does not exist", "Use a name from $defs")
        node = node[part]
        _check_base(node, place)
    return node


def _check_base(node: Any, place: SchemaPlace) -> None:
    """Raise UsageError for a nested schema with a base of its own: references in it would lead to
    other places."""
    if isinstance(node, Mapping) and isinstance(node.get("$id"), str) and node is not place.root:
        raise place.error("$id is not supported inside of a schema", "Remove it")


def _alone(word: str, node: Mapping[str, Any], place: SchemaPlace, hint: str) -> None:
    """Raise UsageError for a keyword that restricts the answer, next to one that stands alone."""
    if more := sorted(plain(node).keys() - {word}):
        raise place.error(f"{more[0]} is not allowed next to {word}", hint)


def plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a schema that restrict an answer."""
    return {name: value for name, value in node.items() if name in KEYWORDS}


EXACT = 2**53 - 1
"""Default bound of numbers: every language represents integers up to it exactly."""
CHARACTER = 6
"""Maximum size of one character in bytes: `\\u000a`."""
ROUGH = ("minimum", "maximum")
"""Keywords that bound numbers with a decimal point."""
CHOICES = ("anyOf", "oneOf")
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
    node, place = _whole(root)
    _object(node, place)
    place = replace(place, room=SchemaRoom())  # the same references are expanded once more
    return {name: _value(each, place.at(name)) for name, each in node["properties"].items()}


def closed(root: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole schema as input for the grammar. Raises UsageError."""
    return _object(*_whole(root)).schema


def unknown_words(root: Mapping[str, Any]) -> list[str]:
    """Return the words of a schema that are no keywords of JSON Schema. Raises UsageError."""
    node, place = _whole(root)
    _object(node, place)
    return [*place.room.unknown]


def _whole(root: Mapping[str, Any]) -> tuple[Mapping[str, Any], SchemaPlace]:
    """Return the schema of the whole answer, an object with properties. Raises UsageError."""
    node, place = resolve_ref(root, SchemaPlace(root, ""))
    if other := sorted({"enum", "const", *CHOICES} & node.keys()):
        raise place.error(
            f"{other[0]} is not supported for the whole answer", "Use it for a property"
        )
    if node.get("type") != "object" or not node.get("properties"):
        raise place.error("not an object schema with properties", 'Begin with {"type": "object", …')
    return node, place


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
    if "const" in node or "enum" in node:
        return _enumerated(node, place)
    for word in CHOICES:
        if word in node:
            _alone(word, node, place, f"Move it into each schema of {word}")
            return _choice(word, node[word], place)
    kind = node.get("type")
    if isinstance(kind, list):
        return _choice("anyOf", [{**node, "type": each} for each in kind], place)
    if not isinstance(kind, str) or kind not in _TYPES:
        problem = "it has no type" if kind is None else f"unknown type {kind}"
        raise place.error(problem, f"Use one of {', '.join(_TYPES)}, or an enum")
    return _TYPES[kind](node, place)


def _enumerated(node: Mapping[str, Any], place: SchemaPlace) -> Bounded:
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
    return Bounded(schema={"enum": values}, max_bytes=max(map(longest, values)), fixed=True)


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
    return Bounded(schema=_own(node) | {"items": item.schema}, max_bytes=max_bytes)


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
    return Bounded(schema=_own(node), max_bytes=max_bytes)


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
        schema=_own(node) | bounds, max_bytes=4 + longest_bound + len(steps) * longest_bound
    )


def _literal(node: Mapping[str, Any], place: SchemaPlace) -> Bounded:
    return Bounded(schema=_own(node), max_bytes=len("false"), fixed=True)


_TYPES: Mapping[str, Callable[[Mapping[str, Any], SchemaPlace], Bounded]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "number": _number,
    "integer": _number,
    "boolean": _literal,
    "null": _literal,
}


def _own(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the type of a value, and the keywords that restrict values of that type."""
    return {n: value for n, value in node.items() if n == "type" or n in OBEYED[node["type"]]}


def _digits(value: float) -> int:
    """Return the number of characters of a number that is written out."""
    return len(f"{Decimal(repr(value)):f}")


def _count(node: Mapping[str, Any], name: str, place: SchemaPlace) -> int:
    value = node.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise place.error(f"{name} is {value}", "Use a whole number from 0")
    return value


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


class RemainingBytes:
    """The maximum size of each property in bytes, its name included, in order; no properties: the
    answer is not closed."""

    def __init__(self, properties: Mapping[str, Bounded]) -> None:
        self.values = [each.max_bytes for each in properties.values()]
        self.fixed = [each.fixed for each in properties.values()]
        self.indexes = {name: index for index, name in enumerate(properties)}
        property_bytes = [longest(name) + each.max_bytes + 2 for name, each in properties.items()]
        self.bytes_from = [sum(property_bytes[index:]) for index in range(len(property_bytes) + 1)]
        """Bytes from each property to the end of the properties."""

    @property
    def tokens(self) -> int:
        """Return the number of tokens that always suffice, end token included; 0: not closed."""
        return self.bytes_from[0] + 2 if self.indexes else 0


class JsonPosition:
    """The position inside an answer that is being generated."""

    def __init__(self, rest: RemainingBytes) -> None:
        self._rest = rest
        self._depth = 0
        self._escaped = False
        self._index = -1
        """Index of the property that was started last."""
        self._name = bytearray()
        self._in_value = False
        self._written = 0
        """Bytes of the current name or value so far."""
        self.in_text = False
        self.done = False
        """Whether the answer is complete."""

    def feed(self, data: bytes) -> None:
        for byte in data:
            self._feed(byte)

    @property
    def remaining(self) -> int:
        """Return the maximum size of the rest in bytes if the current value is closed now."""
        if not self._depth:
            return 0 if self.done else self._rest.bytes_from[0] + 1
        bytes_after = self._rest.bytes_from[self._index + 1]
        if not self._in_value:
            return max(1, bytes_after - self._written)
        value = self._rest.values[self._index]
        return bytes_after + 1 + (max(0, value - self._written) if self.fixed else value)

    @property
    def fixed(self) -> bool:
        """Return whether every possible byte brings the end nearer."""
        return self.done or not self._in_value or self._rest.fixed[self._index]

    def must_close(self, tokens: int) -> bool:
        """Return whether the current value must be closed with `tokens` tokens left."""
        return not self.fixed and tokens - 1 <= self.remaining

    def _feed(self, byte: int) -> None:
        # Without known properties nothing is closed, and only the end of the answer matters.
        outermost = bool(self._rest.indexes) and self._depth == 1 and not self.in_text
        if outermost and byte == ord(":"):
            self._index = self._rest.indexes[json.loads(self._name)]
            self._begin(in_value=True)
            return
        if outermost and byte == ord(","):
            self._begin(in_value=False)
            return
        self._mark(byte)
        if self._index < 0 and not self._name and byte == ord("{"):
            return
        self._written += 1
        if not self._in_value:
            self._name.append(byte)

    def _mark(self, byte: int) -> None:
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

    def _begin(self, *, in_value: bool) -> None:
        self._in_value = in_value
        self._written = 0
        self._name.clear()

"""Says where in a JSON Schema something stands, what it leads to, and which keywords count. Knows
nothing of answers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from artifacts.errors import UsageError

ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default"}
    | {"examples", "deprecated", "readOnly", "writeOnly"}
)
"""Keywords that say nothing of an answer's form."""
WITHIN = frozenset({"properties", "items", "anyOf", "oneOf"})
"""Keywords that hold schemas of their own."""
UNBOUNDED = frozenset(
    {"allOf", "not", "if", "then", "else", "patternProperties", "propertyNames", "prefixItems"}
    | {"minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies"}
    | {"contains", "uniqueItems", "additionalItems", "unevaluatedProperties", "unevaluatedItems"}
    | {"$dynamicRef", "$recursiveRef"}
)
"""Keywords that are refused: of what they ask, no answer can be closed for certain."""


MOST_LETTERS = 1 << 20
"""Letters of a schema in which every reference is written out."""

MOST_REFERENCES = 100
"""References that lead to one place through each other."""


@dataclass(kw_only=True, slots=True)
class SchemaRoom:
    """How much longer a schema may become while its references are written out."""

    left: int = MOST_LETTERS

    def take(self, node: Mapping[str, Any]) -> None:
        """Note that a node stands in the schema, without those inside it. Raises UsageError."""
        own = {name: value for name, value in plain(node).items() if name not in WITHIN}
        names = node.get("properties")
        self.left -= len(json.dumps([own, [*names] if isinstance(names, Mapping) else 0]))
        if self.left < 0:
            raise UsageError(
                f"--schema has more than {MOST_LETTERS:,} letters once its references are "
                "written out",
                hint="Ask for less at once: each $ref stands for all that it leads to",
            )


@dataclass(frozen=True, slots=True)
class SchemaPlace:
    """A place in a schema."""

    root: Mapping[str, Any]
    path: str
    """Its properties from the outermost object on, with points between them."""
    references: tuple[str, ...] = ()
    """References that led here."""
    room: SchemaRoom = field(default_factory=SchemaRoom, repr=False, compare=False)

    def at(self, name: str) -> "SchemaPlace":
        return replace(self, path=f"{self.path}.{name}" if self.path else name)

    def odd(self, what: str, hint: str) -> UsageError:
        where = f" at `{self.path}`" if self.path else ""
        return UsageError(" ".join(f"--schema{where}: {what}".split()), hint=hint)


def followed(node: Any, place: SchemaPlace) -> tuple[Mapping[str, Any], SchemaPlace]:
    """Return what a reference leads to, or the node itself."""
    while isinstance(node, Mapping) and "$ref" in node:
        reference = node["$ref"]
        if more := sorted(node.keys() - ANNOTATIONS - {"$ref"}):
            raise place.odd(f"{more[0]} stands beside $ref", "Put it where that leads")
        if reference in place.references:
            raise place.odd(f"{reference} holds itself", "Write out the levels that you want")
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise place.odd(f"$ref {reference} is not in the file", "Refer to #/$defs/NAME")
        if len(place.references) == MOST_REFERENCES:
            raise place.odd(
                f"more than {MOST_REFERENCES} references lead through each other",
                "Write out what they lead to",
            )
        place = replace(place, references=(*place.references, reference))
        node = _pointed(reference, place)
    if not isinstance(node, Mapping):
        raise place.odd("it is no object of keywords", 'Say what it is: {"type": "string"}')
    if refused := sorted(UNBOUNDED & node.keys()):
        raise place.odd(f"{refused[0]} is not supported", "Leave it out, or ask for it in words")
    place.room.take(node)
    return node, place


def _pointed(reference: str, place: SchemaPlace) -> Any:
    node: Any = place.root
    for part in reference[1:].split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or part not in node:
            raise place.odd(f"$ref {reference} leads nowhere", "Name what is under $defs")
        node = node[part]
    return node


def plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a schema says something of an answer's form."""
    return {name: value for name, value in node.items() if name not in ANNOTATIONS}

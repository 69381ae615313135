"""Says where in a JSON Schema something stands, what it leads to, and which keywords count. Knows
nothing of answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from artifacts.errors import UsageError

ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default"}
    | {"examples", "deprecated", "readOnly", "writeOnly"}
)
"""Keywords that say nothing of an answer's form."""
UNBOUNDED = frozenset(
    {"allOf", "not", "if", "then", "else", "patternProperties", "propertyNames", "prefixItems"}
    | {"minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies"}
    | {"contains", "uniqueItems", "additionalItems", "unevaluatedProperties", "unevaluatedItems"}
    | {"$dynamicRef", "$recursiveRef"}
)
"""Keywords that are refused: of what they ask, no answer can be closed for certain."""


@dataclass(frozen=True, slots=True)
class SchemaPlace:
    """A place in a schema."""

    root: Mapping[str, Any]
    path: str
    """Its properties from the outermost object on, with points between them."""
    references: tuple[str, ...] = ()
    """References that led here."""

    def at(self, name: str) -> "SchemaPlace":
        path = f"{self.path}.{name}" if self.path else name
        return SchemaPlace(self.root, path, self.references)

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
        place = SchemaPlace(place.root, place.path, (*place.references, reference))
        node = _pointed(reference, place)
    if not isinstance(node, Mapping):
        raise place.odd("it is no object of keywords", 'Say what it is: {"type": "string"}')
    if refused := sorted(UNBOUNDED & node.keys()):
        raise place.odd(f"{refused[0]} is not supported", "Leave it out, or ask for it in words")
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

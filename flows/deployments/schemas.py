"""Closes the schemas of the flows' parameters. What a schema lets through and the server cannot
write back makes it answer 500 for every list with that run; what no flow takes makes a run that
ends before it begins.

Every flow is declared with the `flow` of this module.
"""

import inspect
from typing import Any

from prefect import flow
from prefect.utilities import callables

__all__ = ["flow"]

LARGEST = 2**63 - 1
"""Largest number that the server's JSON writer takes; the smallest is as far below zero."""
UNWRITABLE = {
    "description": "text with a NUL character, or that is not UTF-8",
    "type": "string",
    "pattern": "[\\x00\\ud800-\\udfff]",
}
"""Schema of the texts that its database or JSON writer refuses; the error repeats it."""


class ClosedSchema(callables.ParameterSchema):
    """Prefect's schema of a flow's parameters, which refuses all other parameters."""

    additionalProperties: bool


def bound(schema: Any) -> None:
    """Make a schema, and all schemas inside, refuse numbers and texts that the server cannot
    write."""
    if isinstance(schema, dict):
        kind, most = schema.get("type"), ("maximum", "exclusiveMaximum")
        if kind in ("integer", "number") and not schema.keys() & {*most}:
            schema["maximum"] = LARGEST
        if kind in ("integer", "number") and not schema.keys() & {"minimum", "exclusiveMinimum"}:
            schema["minimum"] = -LARGEST
        if kind == "string":
            schema["not"] = UNWRITABLE
        if isinstance(schema.get("additionalProperties"), dict):
            schema["propertyNames"] = {"not": UNWRITABLE}
    for inner in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(inner, dict | list) and inner is not UNWRITABLE:
            bound(inner)


_of_signature = callables.generate_parameter_schema


def closed_schema(signature: inspect.Signature, docstrings: dict[str, str]) -> ClosedSchema:
    """Return Prefect's schema of a flow's parameters, closed."""
    schema = _of_signature(signature, docstrings).model_dump()
    bound(schema)
    return ClosedSchema(**schema, additionalProperties=False)


# Both the flow itself and `prefect deploy` call it, and neither has a setting for it.
callables.generate_parameter_schema = closed_schema

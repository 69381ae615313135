"""Closes the schemas of the flows' parameters in this process, once it is imported. A parameter
that no flow takes would end the run before it begins; a value that the server cannot write back
makes it answer 500 for every list with that run.
"""

import inspect
from typing import Any

from prefect.utilities import callables

LARGEST = 2**63 - 1
"""Largest number that the server's JSON writer takes; the smallest is as far below zero."""
UNWRITABLE = {
    "description": "text with a NUL character, or that is not UTF-8",
    "type": "string",
    "pattern": "[\\x00\\ud800-\\udfff]",
}
"""Texts that its database or JSON writer refuses; the error of a request repeats all of this."""


class ClosedSchema(callables.ParameterSchema):
    """Prefect's schema of a flow's parameters, which refuses all other parameters."""

    additionalProperties: bool


def bound(schema: Any) -> None:
    """Make a schema, and all inside, refuse numbers and texts that the server cannot write."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            schema |= {"minimum": -LARGEST, "maximum": LARGEST} | schema
        if schema.get("type") == "string":
            schema["not"] = UNWRITABLE
        if isinstance(schema.get("additionalProperties"), dict):
            schema["propertyNames"] = {"not": UNWRITABLE}
        schema = [inner for inner in schema.values() if inner is not UNWRITABLE]
    for inner in schema if isinstance(schema, list) else ():
        bound(inner)


_of_signature = callables.generate_parameter_schema


def closed_schema(signature: inspect.Signature, docstrings: dict[str, str]) -> ClosedSchema:
    """Return Prefect's schema of a flow's parameters, closed."""
    schema = _of_signature(signature, docstrings).model_dump()
    bound(schema)
    return ClosedSchema(**schema, additionalProperties=False)


# Called for the flow itself and by `prefect deploy`. Prefect has no setting for it.
callables.generate_parameter_schema = closed_schema

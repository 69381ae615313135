"""Derives the parameter schemas of the Prefect flows from the commands' configurations, so that
Prefect refuses invalid values before a run.

Each flow takes one of the parameter types in this file. Importing this file also closes the schemas
of all flows' parameters: a parameter that no flow takes would end the run before it begins, and a
value that the server cannot write back makes it answer 500 for every list with that run.
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from itertools import pairwise
from textwrap import dedent
from typing import TYPE_CHECKING, Annotated, Any

from prefect.utilities import callables
from pydantic import BeforeValidator, ConfigDict, with_config

from artifacts.errors import UsageError
from artifacts.options import Declared, Option, check_number, declared
from flows.commands.export.options import ExportConfig
from flows.core.options.commands import CaptionConfig, RebuildConfig
from flows.core.options.questions import AskConfig
from flows.core.options.training import LearnConfig, TuneConfig
from flows.core.options.vectors import EmbedConfig, IndexConfig, LabelConfig, SiftConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def docstrings(kind: type["DataclassInstance"]) -> dict[str, str]:
    """Return the docstring below each field of a configuration and of its groups."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(dedent(inspect.getsource(base))).body
        for field, text in pairwise(body.body if isinstance(body, ast.ClassDef) else []):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[ast.unparse(field.target)] = inspect.cleandoc(ast.literal_eval(text.value))
    return texts


def constrain(schema: dict[str, Any], option: Option) -> None:
    """Add the values that an option accepts to the schema of its field."""
    place = schema.get("anyOf", [schema])[0]
    if option.values:
        place.get("items", place)["enum"] = list(option.values)
    bounds = {"exclusiveMinimum": option.above, "minimum": option.least, "maximum": option.most}
    place |= {name: bound for name, bound in bounds.items() if bound is not None}
    if option.not_empty:
        place.get("items", place)["minLength"] = 1
    if takes_text(option):
        schema["anyOf"].insert(1, {"type": "string"})
        place = schema  # inside `anyOf`, the server's refusal would not show the pattern
    if option.text:
        place["pattern"] = option.text


def takes_text(option: Option) -> bool:
    """Return whether a value may also be the text of the command line, such as 8GiB or `auto`."""
    return option.parse is not None and not option.repeated


def form_of(kind: type["DataclassInstance"]) -> ConfigDict:
    """Return settings of a configuration's form. It shows the command's options with their texts
    and bounds. The server's schema refuses every other field by name."""

    def change(schema: dict[str, Any]) -> None:
        properties, texts = schema["properties"], docstrings(kind)
        options = {declaration.name: declaration.option for declaration in declared(kind)}
        for name in [name for name in properties if name not in options]:
            del properties[name]
        for name, field in properties.items():
            field["description"] = texts[name]
            constrain(field, options[name])
        if "sources" in properties:
            properties["sources"]["minItems"] = 1
        if "validate" in properties:
            properties["validate"]["exclusiveMaximum"] = 1

    return ConfigDict(extra="forbid", json_schema_extra=change)


def command_values(kind: type["DataclassInstance"]) -> Callable[[Any], Any]:
    """Return a function that returns the parameters of a command, sizes and the like parsed as on
    the command line. It raises UsageError for fields that the command does not have, and for
    numbers and texts that the command line refuses."""
    own, command = {declaration.name: declaration for declaration in declared(kind)}, COMMANDS[kind]

    def take(given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        if odd := [name for name in given if name not in own]:
            raise UsageError(
                f"`penstock {command}` does not have {', '.join(f'`{name}`' for name in odd)}",
                hint=f"Use only the options of `penstock {command} --help`",
            )
        return {name: parsed(own[name], value) for name, value in given.items()}

    return take


def parsed(declaration: Declared, value: Any) -> Any:
    """Return a field's value as the command line parses it. Raises UsageError."""
    option = declaration.option
    if option.parse and takes_text(option) and type(value) in (str, int, float):
        return option.parse(str(value).removesuffix(".0"))
    if value is not None:
        check_number(declaration, value)  # pydantic takes True and texts for numbers
    return value


COMMANDS: Mapping[type["DataclassInstance"], str] = {
    CaptionConfig: "caption",
    RebuildConfig: "cache rebuild",
    AskConfig: "ask",
    EmbedConfig: "embed",
    IndexConfig: "index build",
    LabelConfig: "label",
    SiftConfig: "sift",
    TuneConfig: "tune",
    LearnConfig: "learn",
    ExportConfig: "export",
}
for _kind in COMMANDS:
    with_config(form_of(_kind))(_kind)
CaptionParameters = Annotated[CaptionConfig, BeforeValidator(command_values(CaptionConfig))]
RebuildParameters = Annotated[RebuildConfig, BeforeValidator(command_values(RebuildConfig))]
AskParameters = Annotated[AskConfig, BeforeValidator(command_values(AskConfig))]
EmbedParameters = Annotated[EmbedConfig, BeforeValidator(command_values(EmbedConfig))]
IndexParameters = Annotated[IndexConfig, BeforeValidator(command_values(IndexConfig))]
SiftParameters = Annotated[SiftConfig, BeforeValidator(command_values(SiftConfig))]
LabelParameters = Annotated[LabelConfig, BeforeValidator(command_values(LabelConfig))]
TuneParameters = Annotated[TuneConfig, BeforeValidator(command_values(TuneConfig))]
LearnParameters = Annotated[LearnConfig, BeforeValidator(command_values(LearnConfig))]
ExportParameters = Annotated[ExportConfig, BeforeValidator(command_values(ExportConfig))]


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

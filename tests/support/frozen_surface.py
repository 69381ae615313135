"""What a user can tell the program, as far as finished work and scripts depend on it: the rows of
`--help`, the values of options that are left out, the fields of Prefect's forms, and what sampling
parameters write into keys."""

import argparse
import importlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

PARAMETERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "sampling": {"sampling": "checkpoint"},
    "no chance": {"sampling": "checkpoint", "temperature": 0.0},
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 0},
    "seed": {"seed": 3},
    "seed of chance": {"seed": 3, "temperature": 0.5},
    "beams": {"beams": 3},
    "repetition_penalty": {"repetition_penalty": 1.0},
    "presence_penalty": {"presence_penalty": 0.5},
    "no presence_penalty": {"presence_penalty": 0.0},
    "no_repeat_ngram": {"no_repeat_ngram": 3},
    "avoid": {"avoid": ("image", "photo")},
    "system": {"system": "Be brief."},
    "start_with": {"start_with": "A "},
    "retry_loops": {"retry_loops": True},
    "schema": {"schema": '{"type":"object"}'},
}
"""Name → sampling parameters that are not as by default."""
SMALLEST = {
    "caption": "a.mp4",
    "plan": "a.mp4",
    "embed": "a.mp4 --model m",
    "label": "a.mp4 --model m --labels a",
    "index build": "a.mp4 --model m",
    "cache rebuild": "a.mp4",
}
"""Command → what must be given of it."""
MODULES = ("caption", "commands", "many", "sweep")


def surface() -> dict[str, Any]:
    """Return all of it but the forms, which need Prefect."""
    return {
        "sampling parameters": {name: written(given) for name, given in PARAMETERS.items()},
        "help": {name: sorted(_rows(each)) for name, each in _commands(parser(), "")},
        "defaults": {command: defaults(command) for command in SMALLEST},
    }


def _commands(found: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name or "penstock", found
    for action in found._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield from _commands(inner, f"{name} {word}".strip())


def _rows(found: Any) -> Iterator[str]:
    """Yield each row of a command's help: its names, its value, its words."""
    formatter = found._get_formatter()
    for action in found._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        if isinstance(action, argparse._SubParsersAction):
            yield from (f"{row.dest} | {row.help}" for row in action._choices_actions)
            continue
        names = ", ".join(action.option_strings) or str(action.dest)
        value = formatter._format_args(action, str(action.metavar or action.dest).upper())
        words = formatter._expand_help(action) if action.help else ""
        needed = " | required" * bool(action.option_strings and action.required)
        yield f"{names} {value}".strip() + f" | {words}{needed}"


def forms() -> dict[str, dict[str, Any]]:
    """Return each flow's parameters, of its configuration the fields: type, default, whether it
    must be given, and whether the form says what it is."""
    from prefect import Flow
    from prefect.utilities.callables import parameter_schema

    found: dict[str, dict[str, Any]] = {}
    for module in MODULES:
        for flow in vars(importlib.import_module(f"flows.deployments.{module}")).values():
            if isinstance(flow, Flow):
                schema = parameter_schema(flow).model_dump()
                found[flow.name] = dict(_fields(schema, schema["definitions"], ""))
    return found


def _fields(schema: dict[str, Any], defined: Any, before: str) -> Iterator[tuple[str, list[Any]]]:
    for name, field in schema["properties"].items():
        inner = defined.get(field.get("$ref", "").rpartition("/")[2])
        if inner:
            yield from _fields(inner, defined, f"{name}.")
            continue
        needed = "required" if name in schema.get("required", ()) else "optional"
        described = "described" if field.get("description") else "bare"
        default = field.get("default") or None  # one that is left out is an empty one
        yield before + name, [_type(field), default, needed, described]


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(sorted(_type(each) for each in field["anyOf"]))
    inner = field.get("items") or field.get("additionalProperties")
    return f"{field.get('type')} of {_type(inner)}" if inner else str(field.get("type"))


# The seams


def written(given: dict[str, Any]) -> list[Any]:
    """Return what these sampling parameters put into a job and into a key."""
    from stages.decode.generation import SamplingParams

    made = SamplingParams(**given)
    return [made.non_defaults, made.key_fields, made.is_sampled, made.is_prefix_stable]


def parser() -> Any:
    """Return the parser of the program."""
    from flows.cli.main import parser as made

    return made()


def defaults(command: str) -> dict[str, Any]:
    """Return the value of each of a command's options that is not given."""
    from flows.cli.main import parse
    from flows.cli.options import config_of
    from flows.options import commands, vectors
    from flows.options.media import VectorSamplingOptions

    kinds: dict[str, Any] = {
        "embed": vectors.EmbedConfig,
        "label": vectors.LabelConfig,
        "index build": vectors.IndexConfig,
        "cache rebuild": commands.RebuildConfig,
    }
    given = parse([*command.split(), *SMALLEST[command].split()])
    config = config_of(given, kinds.get(command, commands.CaptionConfig))
    every = [*fields(commands.CaptionConfig), *fields(VectorSamplingOptions)]
    names = {field.name for field in every} & {*vars(given)}
    named = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in named.items()}

"""Finished work is found again, and scripts go on: keys, names of options, their defaults, and the
parameters of Prefect's flows are as recorded.

tests/data/recorded_keys.json is written anew by `python -m tests.project.test_recorded_keys`, which
is right only where finished work is meant to be done again, or an option is added.
"""

import argparse
import ast
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from artifacts import options
from flows.commands.export.options import ExportConfig
from flows.core.options.commands import CaptionConfig, RebuildConfig
from flows.core.options.serving import ServeConfig
from flows.core.options.training import TuneConfig
from flows.core.options.vectors import (
    EmbedConfig,
    IndexConfig,
    LabelConfig,
    SearchPlace,
    SearchQuery,
)
from tests.support.made_up_runs import DATA, Cell, keys_of
from tests.support.sources import nodes

RECORDED = DATA / "recorded_keys.json"
SCHEMA = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
CHUNKS = ("--chunk", "2")
PROMPTS = ("--prompts", "short=Say it short.", "--prompts", "long=Say it long.")
LABELS = ("--labels", "red,blue")
ONNX = ("--vision-backend", "onnx")
CELLS = {
    "caption": Cell(options=CHUNKS),
    "caption frames": Cell(options=("--frames", "3")),
    "caption prompts": Cell(options=(*CHUNKS, *PROMPTS)),
    "caption schema": Cell(options=(*CHUNKS, "--schema", SCHEMA)),
    "caption summary": Cell(options=(*CHUNKS, "--summary")),
    "caption sampled": Cell(options=(*CHUNKS, "--temperature", "0.5", "--seed", "3")),
    "caption adapter": Cell(options=(*CHUNKS, "--adapter", "{data}/adapter")),
    "caption nf4": Cell(options=(*CHUNKS, "--precision", "nf4")),
    "caption published": Cell(options=CHUNKS, published=True),
    "caption graphs": Cell(options=(*CHUNKS, *ONNX), graphs=True),
    "caption joint": Cell(options=CHUNKS, model="joint"),
    "caption prompted": Cell(options=(*CHUNKS, *PROMPTS), model="prompted"),
    "embed": Cell(command="embed", model="dual"),
    "embed tiles": Cell(command="embed", model="dual", options=("--tiles", "2")),
    "label": Cell(command="label", model="dual", options=LABELS),
    "index": Cell(command="index build", model="dual"),
    "rebuild": Cell(command="cache rebuild", options=CHUNKS),
}
FLOW_MODULES = ("commands", "sweep")


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


def test_the_cells_are_the_recorded_ones() -> None:
    assert recorded()["keys"].keys() == CELLS.keys()


@pytest.mark.whole
@pytest.mark.parametrize("name", CELLS)
def test_namespaces_and_keys_are_as_recorded(name: str) -> None:
    assert keys_of(CELLS[name]) == recorded()["keys"][name]


def test_options_and_their_defaults_are_as_recorded() -> None:
    assert every_option() == recorded()["options"]


def test_flows_have_the_recorded_parameters() -> None:
    assert every_parameter() == recorded()["parameters"]


def every_option() -> dict[str, dict[str, Any]]:
    """Return the options of each command, with their defaults."""
    from flows.commands.shared.parser import parser

    return {name: dict(sorted(_options_of(found))) for name, found in _commands(parser(), "")}


def _commands(found: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name or "penstock", found
    for action in found._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield from _commands(inner, f"{name} {word}".strip())


def _options_of(found: Any) -> Iterator[tuple[str, Any]]:
    for action in found._actions:
        named = not isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
        if named and action.help != argparse.SUPPRESS:
            name = ", ".join(action.option_strings) or str(action.dest)
            yield name, None if action.default == argparse.SUPPRESS else str(action.default)


def every_parameter() -> dict[str, list[str]]:
    """Return the names of each flow's parameters, those of a configuration after its own name."""
    from prefect import Flow
    from prefect.utilities.callables import parameter_schema

    found: dict[str, list[str]] = {}
    for module in FLOW_MODULES:
        for flow in vars(importlib.import_module(f"flows.interfaces.prefect.{module}")).values():
            if isinstance(flow, Flow):
                schema = parameter_schema(flow).model_dump()
                found[flow.name] = sorted(_parameters(schema, schema["definitions"], ""))
    return found


def _parameters(schema: dict[str, Any], defined: Any, before: str) -> Iterator[str]:
    for name, field in schema["properties"].items():
        if inner := defined.get(field.get("$ref", "").rpartition("/")[2]):
            yield from _parameters(inner, defined, f"{name}.")
        else:
            yield before + name


TEXTS = ("--format", "txt,vtt")
CLIPS = ("--clip-frames", "5", "--clip-fps", "4")
READ_BY: dict[type[Any], Cell] = {
    CaptionConfig: Cell(options=(*TEXTS, *CLIPS)),
    RebuildConfig: CELLS["rebuild"],
    EmbedConfig: CELLS["embed"],
    IndexConfig: CELLS["index"],
    LabelConfig: Cell(command="label", model="dual", options=(*LABELS, *TEXTS)),
}
"""Configuration → a run of its command that reads all of its fields."""
NOT_READING = {"__post_init__", "_asdict_inner", "_replace", "replace"}
"""Functions that look at every field, whether anything comes of it or not."""


@pytest.mark.parametrize("kind", READ_BY)
def test_a_command_reads_every_field_that_it_has(
    kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names, read = {field.name for field in fields(kind)}, set[str]()

    def reading(config: Any, name: str) -> Any:
        code = sys._getframe(1).f_code
        if code.co_name not in NOT_READING and Path(code.co_filename) != Path(options.__file__):
            read.add(name)
        return object.__getattribute__(config, name)

    monkeypatch.setattr(kind, "__getattribute__", reading, raising=False)
    keys_of(READ_BY[kind])
    assert names - read == set()


def test_every_field_is_named_where_something_is_done() -> None:
    """These commands load models of their own: that some module reads a field has to do."""
    found = {node.attr for path, node in nodes(ast.Attribute, "flows") if "/cli/" not in path}
    for kind in (TuneConfig, ExportConfig, SearchQuery, SearchPlace, ServeConfig):
        assert {field.name for field in fields(kind)} <= found, kind


if __name__ == "__main__":
    values = {
        "keys": {name: keys_of(cell) for name, cell in CELLS.items()},
        "options": every_option(),
        "parameters": every_parameter(),
    }
    RECORDED.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

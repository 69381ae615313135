"""Which fields each command has: those that it has options for; another is refused by name."""

import argparse
from dataclasses import fields
from typing import Any

import pytest

import penstock
from artifacts.errors import UsageError
from artifacts.options import declared
from flows.cli.main import parser
from flows.options.commands import CaptionConfig, RebuildConfig
from flows.options.export_config import ExportConfig
from flows.options.training import TuneConfig
from flows.options.vectors import EmbedConfig, IndexConfig, LabelConfig, SearchPlace, SearchQuery
from flows.serving.config import RequestLimits, ServeConfig
from scripts import keywords

COMMANDS: dict[str, tuple[type[Any], ...]] = {
    "caption": (CaptionConfig,),
    "plan": (CaptionConfig,),
    "cache rebuild": (RebuildConfig,),
    "embed": (EmbedConfig,),
    "index build": (IndexConfig,),
    "label": (LabelConfig,),
    "search": (SearchQuery, SearchPlace),
    "serve": (ServeConfig,),
    "tune": (TuneConfig,),
    "export": (ExportConfig,),
}
WITHOUT_OPTION = {
    ServeConfig: {field.name for field in fields(RequestLimits)},
}
"""Class → fields that programs set, and no option does."""


def options_of(command: str) -> dict[str, argparse.Action]:
    """The options and arguments of a command by where they are parsed to."""
    found: argparse.ArgumentParser = parser()
    for word in command.split():
        (actions,) = [a for a in found._actions if isinstance(a, argparse._SubParsersAction)]
        found = actions.choices[word]
    return {action.dest: action for action in found._actions}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_of_a_command_is_an_option_of_it(command: str) -> None:
    options = options_of(command)
    for kind in COMMANDS[command]:
        free = {
            n for base, names in WITHOUT_OPTION.items() if issubclass(kind, base) for n in names
        }
        assert {field.name for field in fields(kind)} - free == {d.name for d in declared(kind)}
        for each in declared(kind):
            assert options[each.name].help == each.option.help


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (EmbedConfig, "prompt"),
        (EmbedConfig, "format"),
        (IndexConfig, "vision_precision"),
        (LabelConfig, "engine"),
        (RebuildConfig, "out"),
        (CaptionConfig, "tiles"),
    ],
)
def test_a_field_of_other_commands_is_refused(kind: type[Any], field: str) -> None:
    with pytest.raises(TypeError, match=field):
        kind(sources=("a.png",), model="a/clip", **{field: "x"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": ""}, "--model is empty. Give a folder"),
        ({"out": ""}, "--out is empty"),
        ({"limit": 0}, "invalid --limit 0. Give a number above 0"),
        ({"memory": 0}, "invalid --memory 0"),
        ({"chunk": float("nan")}, "invalid --chunk nan"),
        ({"fps": float("inf")}, "invalid --fps inf"),
        ({"precision": "fp8"}, "unknown --precision fp8. Choose from native"),
        ({"length": "huge"}, "unknown --length huge. Choose from short, medium, long"),
        ({"engine": ""}, "--engine is empty. Choose from auto, transformers"),
        ({"temperature": -0.5}, "invalid --temperature -0.5. Give a number from 0 to 100"),
        ({"beams": 65}, "invalid --beams 65. Give a number from 1 to 64"),
        ({"sources": ("",)}, "empty source"),
        ({"whole": True, "shots": True}, "--whole and --shots exclude each other"),
        ({"whole": True, "chunk": 30.0}, "--whole and --chunk exclude each other"),
        ({"summary_prompt": "What?"}, "--summary-prompt needs --summary"),
        ({"system": "a", "trigger": " a"}, "invalid --trigger ' a'"),
    ],
)
def test_a_value_that_its_declaration_does_not_allow_is_refused(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError) as found:
        CaptionConfig(**{"sources": ("a",), **options})
    assert says in str(found.value)


@pytest.mark.parametrize(
    "kind",
    dict.fromkeys(kind for kinds in COMMANDS.values() for kind in kinds),
    ids=lambda kind: kind.__name__,
)
def test_a_text_that_cannot_be_written_is_refused_by_name(kind: type[Any]) -> None:
    """A lone surrogate in any text, list or dict; a byte that is not UTF-8 in what is no path."""
    needed = {each.name: "int8" for each in declared(kind) if each.is_required}
    for each in declared(kind):
        if "str" not in str(each.type):
            continue
        for text in ("a\ud800", *(() if each.option.path else ("a\udcff",))):
            value: Any = (
                {"x": text} if each.kind is dict else (text,) if each.kind is tuple else text
            )
            with pytest.raises(UsageError) as raised:
                kind(**{**needed, each.name: value})
            if each.name != "to":  # refused before, for what it is
                assert "utf-8" in raised.value.message.lower(), (each.name, raised.value)


def test_a_surrogate_from_python_is_refused_and_a_name_that_is_not_utf_8_is_none() -> None:
    for options in ({"prompt": "\ud800"}, {"sources": "\ud800"}, {"prompts": {"a": "\ud800"}}):
        with pytest.raises(UsageError, match="not valid UTF-8"):
            penstock.plan(options.pop("sources", "missing"), model="demo", **options)
    for options in ({"model": "a" * 5000}, {"model": "demo", "adapter": "a/" * 3000}):
        with pytest.raises(UsageError, match="too long"):
            penstock.plan("missing", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="too long"):
        penstock.status("a" * 5000)
    config = CaptionConfig(sources=("a\udcff",), model="demo", out="o\udcff", store="s\udcff")
    assert config.sources == ("a\udcff",)


def test_the_keywords_of_python_are_those_of_the_command_line() -> None:
    again = "run `python -m scripts.keywords`"
    assert keywords.FILE.read_text(encoding="utf-8") == keywords.source(), again

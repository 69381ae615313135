"""Which fields each command has: those that it has options for; another is refused by name."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Annotated, Any

import pytest

import penstock
from artifacts.errors import UsageError
from artifacts.options import declared
from flows.commands.export.options import ExportConfig
from flows.commands.shared.arguments import config_from
from flows.commands.shared.parser import parse, parser
from flows.core.options.commands import CaptionConfig, RebuildConfig
from flows.core.options.serving import RequestLimits, ServeConfig
from flows.core.options.training import TuneConfig
from flows.core.options.vectors import (
    EmbedConfig,
    IndexConfig,
    LabelConfig,
    SearchPlace,
    SearchQuery,
)
from flows.interfaces.studio import values
from flows.interfaces.studio.roots import Refused, Roots
from penstock.arguments import config_with
from scripts.pages import keywords

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
KINDS = dict.fromkeys(kind for kinds in COMMANDS.values() for kind in kinds)
of_each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
WITHOUT_OPTION = {ServeConfig: {field.name for field in fields(RequestLimits)}}
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
        free = set[str]().union(*(n for of, n in WITHOUT_OPTION.items() if issubclass(kind, of)))
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
        ({"sources": ("",)}, "sources is empty. Name files or folders"),
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


@of_each_kind
def test_a_text_that_cannot_be_written_is_refused_by_name(kind: type[Any]) -> None:
    """A lone surrogate in any text, list or dict; a byte that is not UTF-8 in what is no path."""
    needed = {each.name: "int8" for each in declared(kind) if each.is_required}
    for each in declared(kind):
        if "str" not in str(each.type):
            continue
        for text in ("a\ud800", *(() if each.option.path else ("a\udcff",))):
            value: Any = {"x": text} if each.kind is dict else text
            value = (value,) if each.kind is tuple else value
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


ODD = ("\u0662", "\uff11", "1_0", "0x2", "nan", "inf", "1e999", "00x", "")
"""Texts that no option with a number takes: digits of other scripts and what Python reads beyond
digits, what is not finite, and the value of a variable that a script did not set."""
NUMBERED = ("gpus", "tiles", "memory", "max_store", "threshold", "max_batch", "max_wait")
"""Options with a number or a word, whose values are texts on the command line."""
FACES: dict[str, Callable[[type[Any], str, str], Any]] = {}
"""Face → function of a configuration, a field and a text that builds the configuration."""


def face(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda build: FACES.setdefault(name, build)


def needed(kind: type[Any], without: str = "") -> dict[str, Any]:
    """Values of the options that a configuration cannot be built without."""
    given = {"to": "int8", "sources": ("a.png",), "labels": "a,b", "model": "demo"}
    own = {each.name: each for each in declared(kind)}
    required = {name for name, each in own.items() if each.is_required}
    required |= {"model"} & own.keys()
    return {name: given.get(name, "a") for name in required if name != without}


@face("command line")
def typed(kind: type[Any], name: str, text: str) -> Any:
    command = next(each for each, kinds in COMMANDS.items() if kind in kinds)
    words, places = command.split(), list[str]()
    kinds = COMMANDS[command]
    for each in (one for of in kinds for one in declared(of)):
        value = text if each.name == name else needed(kinds[0]).get(each.name)
        if value is not None:
            value = ",".join(value) if isinstance(value, tuple) else value
            if each.option.positional:
                places.append(value)
            else:
                words.append(f"{each.flag}={value}")
    return config_from(parse([*words, *places]), kind)


@face("Python")
def called(kind: type[Any], name: str, text: str) -> Any:
    return config_with(kind, {**needed(kind, name), name: text}, [d.name for d in declared(kind)])


@cache
def checked(kind: Any) -> Any:
    from pydantic import BeforeValidator, TypeAdapter

    from flows.interfaces.prefect.config_checks import command_values

    return TypeAdapter(Annotated[kind, BeforeValidator(command_values(kind))])


@face("Prefect")
def posted(kind: Any, name: str, text: str) -> Any:
    from flows.interfaces.prefect import config_checks

    if kind not in config_checks.COMMANDS:
        return called(kind, name, text)
    return checked(kind).validate_python({**needed(kind, name), name: text})


@face("page")
def sent(kind: type[Any], name: str, text: str) -> Any:
    if kind is not CaptionConfig or name not in values.ALLOWED or not text:
        return called(kind, name, text)  # the page sends "" for a field that is not filled in
    found = values.checked({name: text}, Roots(("/",)))
    return values.words_of({**needed(kind), **found})


@pytest.mark.in_turn
@pytest.mark.parametrize("each_face", FACES)
@of_each_kind
def test_an_odd_value_is_refused_by_name_on_each_face(
    kind: type[Any],
    each_face: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flows.commands.shared.parser.parser", cache(parser))
    taken = []
    for each in declared(kind):
        numbered = each.kind in (int, float) or each.name in NUMBERED
        unset = each_face == "command line" or each.field.default != ""  # of a variable
        for text in ODD if numbered else ("",) if unset and each.kind is not bool else ():
            try:
                FACES[each_face](kind, each.name, text)
                taken.append((each.name, text, "is taken"))
            except (UsageError, Refused, ValueError) as error:
                said = str(error)
            except SystemExit as end:
                assert end.code == 2
                said = capsys.readouterr().err
            else:
                continue
            name = each.flag.lstrip("-") if not each.option.positional else ""
            if name not in said and each.name not in said:
                taken.append((each.name, text, said))
    assert not taken


def test_the_keywords_of_python_are_those_of_the_command_line() -> None:
    again = "run `python -m scripts.pages.keywords`"
    assert keywords.FILE.read_text(encoding="utf-8") == keywords.source(), again

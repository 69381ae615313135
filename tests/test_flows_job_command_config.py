"""Which fields each command has: those that it has options for; another is refused by name."""

import argparse
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import pytest

from artifacts.errors import UsageError
from flows.cli.main import parser
from flows.deployments.embed import embed_media
from flows.deployments.index import index_folder
from flows.job.command_config import (
    COMMANDS,
    EmbedConfig,
    IndexConfig,
    RebuildConfig,
    check_used,
    run_config,
)
from flows.job.config import CaptionConfig
from flows.job.export_config import ExportConfig
from flows.job.label_config import LabelConfig
from flows.job.tune_config import TuneConfig

PLACE: dict[str, Any] = {"sources": ("a.png",), "model": "a/clip"}
MAKERS: dict[str, Callable[..., EmbedConfig | RebuildConfig]] = {
    "embed": lambda **options: EmbedConfig(**PLACE, **options),
    "index build": lambda **options: IndexConfig(**PLACE, **options),
    "label": lambda **options: LabelConfig(**PLACE, labels="cat", **options),
    "cache rebuild": lambda **options: RebuildConfig(**PLACE, **options),
}


def options_of(command: str) -> set[str]:
    """The names of the options and arguments of a command."""
    found: argparse.ArgumentParser = parser()
    for word in command.split():
        (actions,) = [a for a in found._actions if isinstance(a, argparse._SubParsersAction)]
        found = actions.choices[word]
    return {action.dest for action in found._actions}


def names_of(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind)}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_fields_of_a_command_are_its_options(command: str) -> None:
    kind = LabelConfig if command == "label" else CaptionConfig
    assert COMMANDS[command] == options_of(command) & names_of(kind)


def test_every_field_of_an_export_and_of_a_training_is_an_option() -> None:
    assert names_of(TuneConfig) <= options_of("tune")
    assert names_of(ExportConfig) - {"to"} <= options_of("export")  # `to` is an action's `kind`


@pytest.mark.parametrize(
    ("command", "field", "value"),
    [
        ("embed", "prompt", "What is it?"),
        ("embed", "adapter", "lora"),
        ("embed", "max_new_tokens", 64),
        ("embed", "format", ("txt",)),
        ("index build", "avoid", ("a",)),
        ("index build", "vision_precision", "int8"),
        ("index build", "frames", 4),
        ("label", "prompts", {"short": "What is it?"}),
        ("label", "seed", 1),
        ("label", "engine", "transformers"),
        ("cache rebuild", "out", "elsewhere"),
        ("cache rebuild", "adapter", "lora"),
        ("cache rebuild", "tiles", "2"),
    ],
)
def test_a_field_of_other_commands_is_refused(command: str, field: str, value: object) -> None:
    with pytest.raises(UsageError) as found:
        MAKERS[command](**{field: value})
    assert found.value.message == f"`penstock {command}` does not have `{field}`"
    assert "\n" not in str(found.value)


def test_all_that_is_refused_is_named_in_one_line() -> None:
    with pytest.raises(UsageError, match="does not have `prompt`, `beams`"):
        EmbedConfig(**PLACE, beams=2, prompt="What?")


def test_squares_of_pictures_are_refused_where_captions_are_made() -> None:
    check_used(CaptionConfig(sources=("a",)), "caption")
    with pytest.raises(UsageError, match="`penstock caption` does not have `tiles`"):
        check_used(CaptionConfig(sources=("a",), tiles="2"), "caption")


@pytest.mark.parametrize("command", MAKERS)
def test_fields_of_other_commands_may_be_given_as_by_default(command: str) -> None:
    config = MAKERS[command]()
    assert type(config)(**asdict(config)) == config


@pytest.mark.parametrize("command", MAKERS)
def test_a_run_may_set_what_its_command_does_not_have(command: str) -> None:
    run = replace(run_config(MAKERS[command](fps=2.0)), vision_precision="fp16", out="elsewhere")
    assert (run.fps, run.vision_precision, run.out) == (2.0, "fp16", "elsewhere")


@pytest.mark.parametrize("flow", [embed_media, index_folder], ids=["embed", "index"])
def test_flows_run_a_configuration_that_a_run_may_change(
    flow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[Any] = []
    monkeypatch.setitem(flow.fn.__globals__, "run_in_flow", lambda config, *_: run.append(config))
    flow.fn(MAKERS["embed" if flow is embed_media else "index build"](vision_backend="onnx"))
    assert replace(run[0], vision_precision="native").vision_backend == "onnx"

"""Builds the configurations of commands from the parsed arguments, and that of a caption run also
from the folder that records the run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from artifacts.disk.paths import text_named
from artifacts.errors import UsageError
from artifacts.option_texts import members
from artifacts.options import Declared, declared
from flows.commands.shared.parser import parse
from flows.core.options.commands import CaptionConfig
from flows.core.options.sources import SourceOptions
from flows.core.options.training import CommandRecord, RecordedRun
from flows.outputs.record.recorded_command import repeated

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


def config_from(given: argparse.Namespace, config: type[C], **fixed: Any) -> C:
    """Build a configuration from parsed options. `fixed` are fields without an option. Raises
    UsageError."""
    named = {
        declaration.name: _value(getattr(given, declaration.name), declaration)
        for declaration in declared(config)
        if getattr(given, declaration.name, None) is not None
    }
    return config(**(named | fixed))


def _value(given: Any, declaration: Declared) -> Any:
    """Convert a value to its field's type."""
    if declaration.option.parse is not None and (
        declaration.option.repeated or isinstance(given, str)
    ):
        return declaration.option.parse(given)
    if declaration.kind is tuple and isinstance(given, str):
        return members(declaration.flag, given)
    return tuple(given) if isinstance(given, list) else given


PROMPT_BYTES = 1 << 24
"""Largest size in bytes of a `--prompt-file`. No model reads as much."""
S = TypeVar("S", bound=SourceOptions)


def config_of(
    given: argparse.Namespace, config: type[S], *, sources: bool = True, **fixed: Any
) -> S:
    """Build a configuration from parsed options, with the `fixed` fields. Require sources unless
    `sources` is False. Raises UsageError."""
    if getattr(given, "prompt_file", None) is not None:
        file, hint = Path(given.prompt_file), "Give a text file, or --prompt"
        given.prompt = text_named(file, "prompt-file", PROMPT_BYTES, hint).strip()
        if not given.prompt:
            raise UsageError(
                f"--prompt-file {given.prompt_file} is empty", hint="Leave it out for a description"
            )
    built = config_from(given, config, **fixed)
    if sources:
        built.check_sources()
    return built


def recorded_run(command: CommandRecord) -> RecordedRun:
    """Return the caption run of a recorded command. Paths are relative to the working directory.
    Raises UsageError."""
    config = config_of(parse(repeated(command.words)), CaptionConfig)
    return RecordedRun(config=config, command=command)

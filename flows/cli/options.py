"""Declares the options of the commands over media, and builds their configurations."""

import argparse
from pathlib import Path
from typing import Any, TypeVar

from artifacts.errors import UsageError
from artifacts.paths import text_named
from flows.cli.derived import add_options, config_from
from flows.options.commands import CaptionConfig
from flows.options.headings import FILES, MEMORY, MODEL, SAMPLING, TEXT
from flows.options.media import SourceOptions
from stages.decode.generation import WORDS

PROMPT_BYTES = 1 << 24
"""Largest size in bytes of a `--prompt-file`. No model reads as much."""
C = TypeVar("C", bound=SourceOptions)


def add_caption_options(
    parser: argparse.ArgumentParser, config: type[SourceOptions] = CaptionConfig
) -> None:
    """Add the options of `caption` and `plan`, or of another command over videos."""
    headings = (MODEL, SAMPLING, MEMORY, *((TEXT, WORDS) if config is CaptionConfig else ()), FILES)
    groups = add_options(parser, config, *headings)
    groups[f"{MODEL}: prompt"].add_argument(
        "--prompt-file", metavar="F", help="text file with the prompt"
    )


def add_running_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `caption` only."""
    group = add_quiet_options(parser)
    group.add_argument("--prefect", action="store_true", help="run as a Prefect flow")


def add_quiet_options(parser: argparse.ArgumentParser) -> Any:
    """Add the options that control printing, and return their group."""
    group = parser.add_argument_group("running")
    group.add_argument("--dry-run", action="store_true", help="print what would be done, then exit")
    quiet = group.add_mutually_exclusive_group()
    quiet.add_argument("--quiet", action="store_true", help="print errors only")
    quiet.add_argument("--json", action="store_true", help="print events as JSON lines")
    return group


def config_of(
    given: argparse.Namespace, config: type[C], *, sources: bool = True, **fixed: Any
) -> C:
    """Build a configuration from parsed options, with the `fixed` fields. Require sources unless
    `sources` is False. Raises UsageError."""
    if getattr(given, "prompt_file", None) is not None:
        file, hint = Path(given.prompt_file), "Give a text file, or --prompt"
        given.prompt = text_named(file, "prompt-file", PROMPT_BYTES, hint).strip()
        if not given.prompt:
            raise UsageError(
                f"--prompt-file {given.prompt_file} is empty",
                hint="Leave it out for a description",
            )
    built = config_from(given, config, **fixed)
    if sources:
        built.check_sources()
    return built

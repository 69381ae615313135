"""Declares the options of the commands over media, and builds their configurations. Runs
nothing.
"""

import argparse
from pathlib import Path
from typing import Any, TypeVar

from artifacts.errors import UsageError
from artifacts.regular import read_text
from flows.cli.derived import add_options, config_from
from flows.options.commands import CaptionConfig
from flows.options.headings import FILES, MEMORY, MODEL, SAMPLING, TEXT
from flows.options.media import SourceOptions
from stages.decode.generation import WORDS

PROMPT_BYTES = 1 << 24
"""Largest size of the text of `--prompt-file`: no model reads as much."""
C = TypeVar("C", bound=SourceOptions)


def add_caption_options(
    parser: argparse.ArgumentParser, config: type[SourceOptions] = CaptionConfig
) -> None:
    """Add the options of `caption` and `plan`, or of another command over videos."""
    headings = (MODEL, SAMPLING, MEMORY, *((TEXT, WORDS) if config is CaptionConfig else ()), FILES)
    places = add_options(parser, config, *headings)
    places[f"{MODEL}: prompt"].add_argument(
        "--prompt-file", metavar="F", help="a text file that holds the prompt"
    )


def add_running_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `caption` alone."""
    group = add_quiet_options(parser)
    group.add_argument("--prefect", action="store_true", help="run as a Prefect flow")


def add_quiet_options(parser: argparse.ArgumentParser) -> Any:
    """Add the options that choose what is printed; return what they were added to."""
    group = parser.add_argument_group("running")
    group.add_argument("--dry-run", action="store_true", help="say what would be done, do nothing")
    quiet = group.add_mutually_exclusive_group()
    quiet.add_argument("--quiet", action="store_true", help="print errors only")
    quiet.add_argument("--json", action="store_true", help="print events as JSON lines")
    return group


def config_of(
    given: argparse.Namespace, config: type[C], *, sources: bool = True, **fixed: Any
) -> C:
    """Return the configuration that the options mean, with the `fixed` fields; without `sources`,
    none need be given. Raises UsageError."""
    if getattr(given, "prompt_file", None) is not None:
        given.prompt = read_prompt(Path(given.prompt_file))
        if not given.prompt:
            raise UsageError(
                f"--prompt-file {given.prompt_file} holds no text",
                hint="Leave it out to ask for a description",
            )
    made = config_from(given, config, **fixed)
    if sources:
        made.check_sources()
    return made


def read_prompt(path: Path) -> str:
    """Return the prompt in a text file, without the line break at its end. Raises UsageError."""
    try:
        return read_text(path.expanduser(), PROMPT_BYTES).strip()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of a user who does not exist
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"--prompt-file {path} cannot be read: {reason}", hint="Give a text file, or --prompt"
        ) from error

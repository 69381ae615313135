"""Runs `penstock`: parses the command line, calls one function. Errors become one line and an exit
code."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from artifacts.errors import EnvironmentFault, PenstockError
from flows.cli.parsing import CommandParser, check_texts

EPILOG = """exit codes: 0 all captioned · 1 some items failed, named · 2 usage · 3 cannot fit ·
4 interrupted, resumable · 5 environment (disk, store, driver, network)"""


COMMANDS = {
    "caption": ("caption videos and images", "small_options:add_caption"),
    "plan": ("what a run would take, and whether it fits", "small_options:add_plan"),
    "embed": ("vectors of images and videos", "vector_options:add_embed"),
    "label": ("labels of images and videos", "vector_options:add_label"),
    "index": ("vectors to search in", "index_options:add_index_commands"),
    "search": ("search an index", "index_options:add_search_options"),
    "tune": ("an adapter trained on your captions", "tune_options:add_tune_options"),
    "serve": ("labels, search, captions over HTTP", "serve_options:add_serve_options"),
    "status": ("how a run stands", "small_options:add_status"),
    "report": ("a run as one HTML file", "small_options:add_report"),
    "review": ("correct and accept captions", "small_options:add_review"),
    "cache": ("look after the store", "cache_options:add_cache_commands"),
    "convert": ("a model's pickled weights as safetensors", "small_options:add_convert"),
    "export": ("a model in few bits, judged", "export_options:add_export_options"),
    "doctor": ("what this machine has and lacks", "small_options:add_doctor"),
    "completion": ("what a shell completes this command by", "small_options:add_completion"),
    "demo": ("caption a dozen clips of the demo world, with score", "small_options:add_demo"),
}
"""Command → its line of help, and what adds its options: `module of flows.cli:function`. The module
is imported for that command alone."""
ALONE = ("completion", "demo")
"""Commands that have no exit codes of a run."""


def parser(only: str | None = None) -> CommandParser:
    """Return the parser with every command, and with the options of `only` that one (None: of all);
    a test freezes the set."""
    top = CommandParser(
        prog="penstock",
        description="Caption long videos and large image folders on a GPU too small for the model.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, (text, adder) in COMMANDS.items():
        command = commands.add_parser(name, help=text, epilog=None if name in ALONE else EPILOG)
        if only in (None, name):
            module, function = adder.split(":")
            getattr(import_module(f"flows.cli.{module}"), function)(command)
    return top


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, which is in `words`; sources may stand before and after options."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = _parse(words)
    given.words = words
    return given


def _parse(words: list[str]) -> argparse.Namespace:
    top = parser(next((word for word in words if not word.startswith("-")), ""))
    # What follows `--` is a source whatever it looks like; argparse takes it for unknown options
    # where sources stand before the options.
    end = words.index("--") if "--" in words else len(words)
    given, rest = top.parse_known_args(words[:end])
    if "sources" not in given:
        given, rest = top.parse_known_args(words)
        if rest:
            top.of_command(given.command).unknown(rest)
        return given
    if any(word.startswith("-") for word in rest):
        top.of_command(given.command).unknown(rest)
    given.sources += [*rest, *words[end + 1 :]]
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = parse(arguments)
    try:
        if given.version:
            from importlib.metadata import version

            print(f"penstock {version('penstock')}")
            return 0
        if given.command is None:
            parser("").print_help()
            return 2
        check_platform()
        check_texts(given)
        return run(given)
    except Exception as error:
        return _ended_by(error)
    except KeyboardInterrupt as stop:
        return _ended_by(stop)


def _ended_by(error: BaseException) -> int:
    """Say in one line what went wrong, and return the exit code."""
    from flows.cli.last_words import say, unforeseen

    if isinstance(error, PenstockError):
        say(str(error))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        say("stopped. Nothing finished is lost")
        return 4
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    if isinstance(error, OSError):
        from artifacts.store import fault_of
        from flows.console.terminal import forget_terminal

        forget_terminal()
        fault = fault_of(error, Path(str(error.filename or "standard output")))
        say(str(fault))
        return fault.exit_code
    assert isinstance(error, Exception)
    return unforeseen(error)


def run(given: argparse.Namespace) -> int:
    """Call the command's function, in a module of its own that is imported only when wanted."""
    name = f"{given.command}_command"
    return int(getattr(import_module(f"flows.cli.{name}"), name)(given))


def check_platform() -> None:
    """Refuse in one line to run where Penstock was never tried. Raises EnvironmentFault."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EnvironmentFault(
            f"Penstock runs on Linux x86-64, this is {platform.system()} {platform.machine()}",
            hint="On Windows use WSL2",
        )


if __name__ == "__main__":
    sys.exit(main())

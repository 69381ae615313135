"""Entry point of `penstock`: parses the command line and calls one function. An error becomes one
line and an exit code.
"""

import argparse
import errno
import platform
import re
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.option_texts import GIVE_VALUE, NUMBER_NAMES, NUMBERS, number
from artifacts.packages import missing_package
from artifacts.wording import meant
from flows.core.console.interrupts import repeating_dropped_interrupts
from flows.core.console.lines import print_lines, wrapped
from stages.process.output_streams import lasting_output

CHOICE = re.compile(r"argument (.*): invalid choice: '(.*)' \(choose from (.*)\)")
"""argparse's message about a value that is not one of the choices."""
NUMBER = re.compile(r"argument (.*): invalid (int|float) value: (['\"])(.*)\3", re.DOTALL)
"""argparse's message about a value that is not a number."""


class Help(argparse.HelpFormatter):
    """A help formatter that breaks lines between words and never inside an option."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(" ".join(text.split()), width, hanging=0)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = wrapped(" ".join(text.split()), width - len(indent), hanging=0)
        return "\n".join(indent + line for line in lines)


SHARING = "caption, label, embed, index build and cache rebuild"
"""Commands whose work several GPUs share."""


class CommandParser(argparse.ArgumentParser):
    """A parser without option abbreviations, so that a new option breaks no script."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, "formatter_class": Help, **options})
        for kind in NUMBERS:
            self.register("type", kind, partial(number, kind=kind))

    def _get_values(self, action: argparse.Action, words: list[str]) -> Any:
        """Return the values of the words of an option or argument. Raises UsageError for an empty
        one."""
        if "" in words and not isinstance(action, argparse._SubParsersAction):
            name = next(iter(action.option_strings), action.metavar or action.dest)
            raise UsageError(f"{name} is empty", hint=GIVE_VALUE)
        return super()._get_values(action, words)

    def error(self, message: str) -> NoReturn:
        """Print the error in one line, and exit with code 2."""
        if found := CHOICE.fullmatch(message):
            what, given, choices = found.groups()
            names = re.findall(r"'([^']*)'", choices)
            noun = "command" if what in ("COMMAND", "ACTION") else f"value of {what}"
            message = f"unknown {noun}: {given}{meant(given, names)}"
        elif found := NUMBER.fullmatch(message):
            kind = NUMBER_NAMES[int if found[2] == "int" else float]
            message = f"invalid {found[1]} {found[4]!r}. Give {kind}"
        print_lines(f"{self.prog}: {message}. See `{self.prog} --help`", to=sys.stderr)
        self.exit(2)

    def unknown(self, words: Sequence[str]) -> NoReturn:
        names = [name for action in self._actions for name in action.option_strings]
        first = next((word for word in words if word.startswith("-")), words[0])
        name = first.partition("=")[0]
        if name == "--gpus":
            self.error(f"it computes on one GPU; --gpus is for {SHARING}")
        self.error(f"unknown option {name}{meant(name, names)}")

    def of_command(self, name: str | None) -> "CommandParser":
        """Return the parser of a command, or this parser for an unknown one."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and name in action.choices:
                parser: CommandParser = action.choices[name]
                return parser
        return self


EPILOG = """exit codes: 0 success · 1 some items failed (listed) · 2 usage · 3 does not fit ·
4 interrupted, resumable · 5 environment (disk, store, driver, network)"""


COMMANDS = {
    "caption": ("caption videos and images", "command_options:add_caption"),
    "plan": ("estimate memory, disk and time; check that it fits", "command_options:add_plan"),
    "embed": ("compute vectors of images and videos", "command_options:add_embed"),
    "label": ("label images and videos", "command_options:add_label"),
    "sift": ("mark media: copies, blur, black and still ones", "command_options:add_sift"),
    "index": ("build and maintain a search index", "command_options:add_index_commands"),
    "search": ("search an index", "command_options:add_search_options"),
    "tune": ("train an adapter on your captions", "command_options:add_tune"),
    "learn": ("train on corrected captions, and caption again", "command_options:add_learn"),
    "serve": ("serve labels, search and captions over HTTP", "command_options:add_serve"),
    "studio": ("do all of it in one page", "command_options:add_studio"),
    "status": ("print the progress of a run", "command_options:add_status"),
    "report": ("write an HTML report of a run", "command_options:add_report"),
    "review": ("correct and accept captions", "command_options:add_review"),
    "cache": ("list, check and clean the store", "command_options:add_cache_commands"),
    "convert": ("convert a model's pickled weights to safetensors", "command_options:add_convert"),
    "export": ("quantize a model and compare it with the original", "command_options:add_export"),
    "doctor": ("check GPU, drivers and packages", "command_options:add_doctor"),
    "completion": ("print a shell completion script", "completion_command:add_completion"),
    "demo": ("caption and score demo clips", "command_options:add_demo"),
}
"""Command → its help line, and `module of flows.interfaces.cli:function` that adds its options. The module is
imported only for that command."""
WITHOUT_EXIT_CODES = ("completion", "demo")
"""Commands without the exit codes of a run."""


def parser(only: str | None = None) -> CommandParser:
    """Return the parser with every command, and with the options of the command `only` (None: of
    all)."""
    top = CommandParser(
        prog="penstock",
        description="Caption long videos and large image folders on a GPU too small for the model.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, (text, adder) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, epilog=None if name in WITHOUT_EXIT_CODES else EPILOG
        )
        if only in (None, name):
            module, function = adder.split(":")
            getattr(import_module(f"flows.interfaces.cli.{module}"), function)(command)
    return top


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, and store it in `words`. Sources may stand before and after
    options."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = _parse(words)
    given.words = words
    return given


def _parse(words: list[str]) -> argparse.Namespace:
    top = parser(next((word for word in words if not word.startswith("-")), ""))
    # Everything after `--` is a source. argparse would take it for unknown options if sources stand
    # before the options.
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
    """Run one command, and return its exit code. Output that nobody reads changes neither."""
    with lasting_output() as output:
        try:
            with repeating_dropped_interrupts():
                code = _main(arguments)
        except (Exception, KeyboardInterrupt) as error:
            code = _exit_code_of(error)
        output.flush()
        if output.error is not None:  # a full disk, not a reader that has ended
            why = f"because standard output cannot be written ({output.error.strerror})"
            hint = "All else is done; send the output elsewhere"
            fault = EnvironmentFault(f"the output is incomplete, {why}", hint=hint)
            code = code or _exit_code_of(fault)
        return code


def _main(arguments: Sequence[str] | None) -> int:
    given = parse(arguments)
    if given.version:
        from importlib.metadata import version

        print(f"penstock {version('penstock')}")
        return 0
    if given.command is None:
        parser("").print_help()
        return 2
    check_platform()
    return run(given)


def _exit_code_of(error: BaseException) -> int:
    """Print the error in one line, and return the exit code."""
    from flows.commands.shared.exit_report import print_error, report_crash

    if isinstance(error, PenstockError):
        print_error(str(error))
        return error.exit_code
    # Python raises RuntimeError from an interrupt that comes while a class is made.
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):
        print_error("interrupted; finished items are kept")
        return 4
    if isinstance(error, OSError) and (
        error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT)
    ):
        from artifacts.records.store import fault_of

        fault = fault_of(error, Path(str(error.filename or "the store or the output folder")))
        print_error(str(fault))
        return fault.exit_code
    assert isinstance(error, Exception)
    if missing := missing_package(error, "this command"):
        print_error(str(missing))
        return missing.exit_code
    return report_crash(error)


def run(given: argparse.Namespace) -> int:
    """Call the command's function. Its module is imported only when needed."""
    name = f"{given.command}_command"
    return int(getattr(import_module(f"flows.interfaces.cli.{name}"), name)(given))


def check_platform() -> None:
    """Raise EnvironmentFault on an untested platform."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EnvironmentFault(
            f"Penstock runs on Linux x86-64, this is {platform.system()} {platform.machine()}",
            hint="On Windows use WSL2",
        )


if __name__ == "__main__":
    sys.exit(main())

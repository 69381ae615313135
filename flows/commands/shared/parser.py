"""The parser of the command line, with the options of one command or of all."""

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

from artifacts.errors import UsageError
from artifacts.option_texts import GIVE_VALUE, NUMBER_NAMES, NUMBERS, number
from artifacts.wording import meant
from flows.core.commands import COMMANDS
from flows.core.console.lines import print_lines, wrapped

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
        if match := CHOICE.fullmatch(message):
            what, given, choices = match.groups()
            names = re.findall(r"'([^']*)'", choices)
            noun = "command" if what in ("COMMAND", "ACTION") else f"value of {what}"
            message = f"unknown {noun}: {given}{meant(given, names)}"
        elif match := NUMBER.fullmatch(message):
            kind = NUMBER_NAMES[int if match[2] == "int" else float]
            message = f"invalid {match[1]} {match[4]!r}. Give {kind}"
        print_lines(f"{self.prog}: {message}. See `{self.prog} --help`", to=sys.stderr)
        self.exit(2)

    def unknown(self, words: Sequence[str]) -> NoReturn:
        names = [name for action in self._actions for name in action.option_strings]
        first = next((word for word in words if word.startswith("-")), words[0])
        name = first.partition("=")[0]
        if name == "--gpus":
            self.error(f"it computes on one GPU; --gpus is for {SHARING}")
        if name in names:
            self.error(f"{name} stands after --, where no option is read. Move it in front")
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


WITHOUT_EXIT_CODES = ("completion", "demo")
"""Commands without the exit codes of a run."""


def module_of(command: str) -> ModuleType:
    """Import the module of a command, only when it is needed."""
    return import_module(f"{COMMANDS[command][1]}.{command}_command")


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
    for name, (text, _) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, epilog=None if name in WITHOUT_EXIT_CODES else EPILOG
        )
        if only in (None, name):
            getattr(module_of(name), f"add_{name}")(command)
    return top


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, and store it in `words`. Sources may stand before and after
    options."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = _parse(words)
    given.words = words
    return given


def program(words: Sequence[str]) -> list[str]:
    """Return what starts a command of this program in another process."""
    return [sys.executable, "-P", "-m", "penstock", *words]


def _parse(words: list[str]) -> argparse.Namespace:
    top = parser(next((word for word in words if not word.startswith("-")), ""))
    given, rest = top.parse_known_args(words)
    if "sources" not in given:
        if rest:
            top.of_command(given.command).unknown(rest)
        return given
    # Everything after `--` is a source. argparse takes it for unknown options if sources stand
    # before the options.
    end = words.index("--") if "--" in words else len(words)
    given, rest = top.parse_known_args(words[:end])
    if any(word.startswith("-") for word in rest):
        top.of_command(given.command).unknown(rest)
    given.sources += [*rest, *words[end + 1 :]]
    return given

"""Parses command lines: options by their whole names, and one line that says what was meant where
one is wrong."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from artifacts.errors import UsageError
from artifacts.words import meant
from flows.console.lines import tell, wrapped

CHOICE = re.compile(r"argument (.*): invalid choice: '(.*)' \(choose from (.*)\)")
"""What argparse says of a value that is none of those that may be."""
NUMBER = re.compile(r"argument (.*): invalid (int|float) value: (['\"])(.*)\3", re.DOTALL)
"""What argparse says of a value that is no number."""

# fmt: off
PATHS = frozenset((
    "sources", "out", "store", "model", "adapter", "prompt_file", "schema",
    "index", "labels", "templates", "examples", "html", "copy", "to", "data",
    "source", "folder", "calibrate", "calibrate_store", "caption_model", "token_file",
    "names", "words",
))
# fmt: on
"""Where what names files is parsed to: a name of a file may be any bytes."""
WRITTEN = {"without": "--not", "what": "TEXT"}
"""Where other texts are parsed to → how a command line has them, if not by that name."""


class Help(argparse.HelpFormatter):
    """Help whose lines end between words; an option is one."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(" ".join(text.split()), width, hanging=0)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = wrapped(" ".join(text.split()), width - len(indent), hanging=0)
        return "\n".join(indent + line for line in lines)


class CommandParser(argparse.ArgumentParser):
    """A parser of which no option may be shortened, so that a new one breaks no script."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, "formatter_class": Help, **options})

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong, and end with exit code 2."""
        if found := CHOICE.fullmatch(message):
            what, given, choices = found.groups()
            names = re.findall(r"'([^']*)'", choices)
            noun = "command" if what in ("COMMAND", "ACTION") else f"value of {what}"
            message = f"{given} is no {noun}{meant(given, names)}"
        elif found := NUMBER.fullmatch(message):
            kind = "a whole number" if found[2] == "int" else "a number"
            message = f"{found[1]} is {found[4] or 'empty'}. Give {kind}"
        tell(f"{self.prog}: {message}. `{self.prog} --help` lists what there is", to=sys.stderr)
        self.exit(2)

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Refuse options that there are not."""
        shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
        names = [name for action in shown for name in action.option_strings]
        first = next((word for word in words if word.startswith("-")), words[0])
        name = first.partition("=")[0]
        self.error(f"there is no option {name}{meant(name, names)}")

    def of_command(self, name: str | None) -> "CommandParser":
        """Return the parser of a command; this one where there is none of that name."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and name in action.choices:
                parser: CommandParser = action.choices[name]
                return parser
        return self


def check_texts(given: argparse.Namespace) -> None:
    """Raise UsageError where a text of the command line is not text: Python takes bytes that are
    not of the terminal's encoding as lone surrogates, which no file and no model takes."""
    for name, value in vars(given).items():
        texts = value if isinstance(value, list) else [value]
        if name not in PATHS and any(isinstance(each, str) and _is_broken(each) for each in texts):
            option = WRITTEN.get(name, "--" + name.replace("_", "-"))
            raise UsageError(
                f"{option}: it is not text in UTF-8",
                hint="Set the terminal to UTF-8 (LANG=C.UTF-8), or save the script in UTF-8",
            )


def _is_broken(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)

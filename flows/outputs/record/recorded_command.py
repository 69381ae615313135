"""The command of a run as its record has it, which may be repeated, and changed for that."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from artifacts.errors import redacted
from artifacts.options import declared
from artifacts.remote.addresses import signed
from flows.core.options.commands import CaptionConfig
from flows.core.options.training import CommandRecord

COMMAND = "caption"
"""The command that may be repeated."""
OMITTED_OPTIONS = (
    *("--prefect", "--retry-failed", "--json", "--quiet", "--replace"),
    *("--trust-remote-code", "--trust-folder"),
)
"""Options left out of a repeated command: they do more than write files, hide its output, drop
rows, or trust code or files of others, which needs consent each time."""
OMITTED_VALUES = ("--metrics-file", "--notify")
"""Options with a value that no record has: where a run is reported is named for each run, and an
address to post to may be a secret."""


def repeated(words: Sequence[str]) -> list[str]:
    """Return the words of a command for another run."""
    return [word for word in without(words, OMITTED_VALUES) if word not in OMITTED_OPTIONS]


def moved_with(path: Path, before: Path, out: Path) -> Path:
    """Return where a path is now: one in the run's folder of before, in the folder that it is."""
    return out / path.relative_to(before) if path.is_relative_to(before) else path


def without(words: Sequence[str], options: Collection[str]) -> list[str]:
    """Return the words of a command without these options, which take one value each."""
    words_kept, rest = list(words[:1]), iter(words[1:])
    for word in rest:
        if word == "--":
            words_kept += [word, *rest]
        elif word in options:
            next(rest, None)
        elif word.partition("=")[0] not in options:
            words_kept.append(word)
    return words_kept


def with_values(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return the words of a command with other values of these options, which take one each."""
    kept, given = without(words, values), [word for pair in values.items() for word in pair]
    return [*kept[:1], *given, *kept[1:]]


def words_of(config: CaptionConfig) -> list[str]:
    """Return the words of the command that makes the configuration of a caption run; none if a text
    in a list has a comma, at which the command line splits it."""
    words = [COMMAND]
    for declaration in declared(CaptionConfig):
        value, default = getattr(config, declaration.name), declaration.field.default
        if declaration.option.positional or value is None or value == default:
            continue
        parts = value if isinstance(value, tuple) else ()
        if any("," in part or part != part.strip() for part in parts):
            return []
        words += declaration.words(value)
    return [*words, "--", *config.sources]


def command_of(words: Sequence[str]) -> CommandRecord | None:
    """Return words and this folder as a record has them; None if the words hold credentials."""
    words = without(words, OMITTED_VALUES)
    values = [part for word in words for part in (word, word.partition("=")[2])]
    if not words or any(redacted(value) != value or signed(value) for value in values):
        return None
    return CommandRecord(words=tuple(words), folder=os.getcwd())

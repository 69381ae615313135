"""Changes the words of a recorded command, so that it can be repeated."""

from collections.abc import Mapping, Sequence
from pathlib import Path

COMMAND = "caption"
"""The command that may be repeated."""
OMITTED_OPTIONS = (
    *("--prefect", "--retry-failed", "--json", "--quiet", "--replace"),
    *("--trust-remote-code", "--trust-folder"),
)
"""Options left out of a repeated command: they do more than write files, hide its output, drop
rows, or trust code or files of others, which needs consent each time."""


def repeated(words: Sequence[str]) -> list[str]:
    """Return the words of a command for another run."""
    return [word for word in words if word not in OMITTED_OPTIONS]


def moved_with(path: Path, before: Path, out: Path) -> Path:
    """Return where a path is now: one in the run's folder of before, in the folder that it is."""
    return out / path.relative_to(before) if path.is_relative_to(before) else path


def with_values(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return the words of a command with other values of these options, which take one each."""
    kept, rest = list[str](), iter(words[1:])
    for word in rest:
        if word == "--":
            kept += [word, *rest]
        elif word in values:
            next(rest, None)
        elif word.partition("=")[0] not in values:
            kept.append(word)
    given = [word for pair in values.items() for word in pair]
    return [*words[:1], *given, *kept]

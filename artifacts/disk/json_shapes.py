"""Parses JSON that may have been edited, and words the errors of files that hold it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from artifacts.errors import EnvironmentFault

Json: TypeAlias = str | int | float | bool | Sequence["Json"] | Mapping[str, "Json"] | None
"""A value that JSON can hold; a tuple is written as a list."""
MAX_NUMBER = 1 << 63
"""Bound on the size of numbers."""
MAX_DEPTH = 32
"""Largest nesting depth of lists and objects; ours have eight."""
BYTES = 1 << 30
"""Largest file in bytes: that of about a million captions."""


class ShapeError(ValueError):
    """JSON is not as it is declared. The message names the difference."""


def text(value: Json) -> bool:
    """Return whether a value is a string that UTF-8 can encode."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def parse(line: str) -> Any:
    """Parse JSON. Raises ValueError, also for excessive nesting and for NaN or infinity."""
    try:
        value = json.loads(line, parse_constant=_refuse)
    except RecursionError as error:
        raise ShapeError("it is nested too deeply") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inside
            for one in level
            if isinstance(one, dict | list)
            for inside in (one if isinstance(one, list) else one.values())
        ]
        if not level:
            return value
    raise ShapeError("it is nested too deeply")


def _refuse(name: str) -> NoReturn:
    raise ShapeError(f"{name} is not a JSON number")


def unreadable(path: Path, error: Exception, hint: str, line: str = "") -> EnvironmentFault:
    """Return the error of a file that cannot be read, or has another shape."""
    why = error.strerror if isinstance(error, OSError) else str(error)
    if isinstance(error, ValueError) and not isinstance(error, ShapeError):
        why = "invalid JSON"
    return EnvironmentFault(f"{path} cannot be read{line}: {why}", hint=hint)

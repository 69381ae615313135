"""Validates JSON that may have been edited against the shape that it was written in.

A shape is one of:

- a function of this module that checks one value (`text`, `count`, `number`, ...)
- a list of one shape
- a tuple with one shape per element
- a dict of an object's fields
- `Nullable`, `EmptyOr`, `OptionalField` or `MapOf` of another shape
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.regular import read_text

Shape = Any
MOST = 1 << 63
"""Bound that no number of ours comes to."""
DEEP = 32
"""How deep lists and objects may lie in one another: ours do in eight."""
BYTES = 1 << 30
"""How long a file may be: that of some million captions."""


class ShapeError(ValueError):
    """JSON does not have the expected shape. The message names the difference."""


@dataclass(frozen=True, slots=True)
class Nullable:
    """Null or the given shape."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class EmptyOr:
    """An empty object or the given shape."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class OptionalField:
    """A field that may be omitted."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object with arbitrary keys whose values have the given shape."""

    shape: Shape


def text(value: Any) -> bool:
    """Return whether it is a string that can be written down."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def number(value: Any) -> bool:
    """Return whether it is a finite number of a size that can be meant."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) < MOST


def count(value: Any) -> bool:
    """Return whether it is a whole number from 0 on."""
    return isinstance(value, int) and number(value) and value >= 0


def moment(value: Any) -> bool:
    """Return whether it is a date and time."""
    try:
        return bool(datetime.fromisoformat(value).timestamp() or True)
    except (TypeError, ValueError, OverflowError, OSError):
        return False


def anything(value: Any) -> bool:
    """Return True for whatever JSON can say."""
    return True


def check(value: Any, shape: Shape, where: str = "it") -> None:
    """Raise Misshapen, with the place, when a value has another shape."""
    if isinstance(shape, Nullable | EmptyOr):
        if value != (None if isinstance(shape, Nullable) else {}):
            check(value, shape.shape, where)
    elif isinstance(shape, dict | MapOf):
        _check_object(value, shape, where)
    elif isinstance(shape, list | tuple):
        if not isinstance(value, list) or (isinstance(shape, tuple) and len(value) != len(shape)):
            raise ShapeError(f"{where} is not the list that it should be")
        of_each = shape if isinstance(shape, tuple) else shape * len(value)
        for at, (inside, one) in enumerate(zip(value, of_each, strict=True)):
            check(inside, one, f"{where}[{at}]")
    elif not shape(value):
        raise ShapeError(f"{where} is no {shape.__name__}")


def _check_object(value: Any, shape: dict[str, Shape] | MapOf, where: str) -> None:
    if not isinstance(value, dict):
        raise ShapeError(f"{where} is no object")
    if isinstance(shape, MapOf):
        for name, inside in value.items():
            check(name, text, f"a name in {where}")
            check(inside, shape.shape, f"{where}.{name[:40]}")
        return
    for name, one in shape.items():
        if name in value:
            check(
                value[name], one.shape if isinstance(one, OptionalField) else one, f"{where}.{name}"
            )
        elif not isinstance(one, OptionalField):
            raise ShapeError(f"{where} has no {name}")


def parse(line: str) -> Any:
    """Return the value that JSON says. Raises ValueError, also for what nests without end or is no
    number."""
    try:
        value = json.loads(line, parse_constant=_refuse)
    except RecursionError as error:
        raise ShapeError("it is nested too deeply") from error
    level = [value]
    for _ in range(DEEP):
        level = [
            inside
            for one in level
            if isinstance(one, dict | list)
            for inside in (one if isinstance(one, list) else one.values())
        ]
        if not level:
            return value
    raise ShapeError("it is nested too deeply")


def _refuse(name: str) -> Any:
    raise ShapeError(f"{name} is no number")


def read_json(path: Path, shape: Shape, hint: str, prepared: Callable[[Any], Any]) -> Any:
    """Return what a file of JSON says, after `prepared` has put in what older versions did not
    write. Raises UsageError when it is not there, EnvironmentFault when it is not of this shape."""
    try:
        value = parse(read_text(path, BYTES))
        check(value, {}, "it")
        value = prepared(value)
        check(value, shape, "it")
        return value
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}", hint=hint) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, hint) from error


def read_jsonl(
    path: Path, shape: dict[str, Shape], hint: str, most: int | None = None
) -> list[dict[str, Any]]:
    """Return the objects of a file that holds one a line, with the fields of this shape; of its
    first `most` lines. None are returned when it is not there. Raises EnvironmentFault."""
    try:
        # Not splitlines, which also cuts where a caption has an odd line separator.
        lines = read_text(path, BYTES, lines=most).split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(path, error, hint) from error
    rows = []
    for at, line in enumerate(lines, 1):
        if line:
            try:
                row = parse(line)
                check(row, shape)
            except ValueError as error:
                raise _unreadable(path, error, hint, f" at line {at}") from error
            rows.append({name: row[name] for name in shape if name in row})
    return rows


def _unreadable(path: Path, error: Exception, hint: str, line: str = "") -> EnvironmentFault:
    why = error.strerror if isinstance(error, OSError) else str(error)
    if isinstance(error, ValueError) and not isinstance(error, ShapeError):
        why = "it is no JSON"
    return EnvironmentFault(f"{path} cannot be read{line}: {why}", hint=hint)

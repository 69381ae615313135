"""Reads JSON of our own as typed values.

Jobs, their items, events, profiles and other records are read as the type that wrote them. A
dataclass travels as an object with its fields by name, a NamedTuple as the list of its values.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from artifacts.disk.json_shapes import BYTES, Json, ShapeError, parse, unreadable
from artifacts.disk.regular_files import read_text
from artifacts.errors import UsageError

R = TypeVar("R")
NOT_UNICODE = re.compile("Expected `str` matching regex '[^']*d800[^']*'")
"""What the library says of a `Text` with half a character."""
PLACE = " - at `$"
"""What it says before the place."""
LONGEST_MESSAGE = 200
"""Most characters of what it says, which may quote the value."""
JSON_KINDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "array": "list",
}
KINDS = re.compile("[a-z]+")


def read_record(kind: type[R], value: Json) -> R:
    """Return a JSON value as the type `kind`; a whole number becomes a float where a float is
    declared. Raises TypeError, with the place, for an unknown field, a missing one, or a value of
    another type."""
    import msgspec  # 0.03 s, which --help does without

    name = kind.__name__ if isinstance(kind, type) else str(kind)
    _refuse_unknown(kind, value, name)
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise TypeError(f"{name}: {error}") from error


def read_json_file(kind: type[R], path: Path, hint: str) -> R:
    """Return a JSON file as the type `kind`; fields that it does not have are left out. Raises
    UsageError if the file is missing, EnvironmentFault, with the place, if it is not as declared,
    which may be in `__post_init__`, too."""
    try:
        content = read_text(path, BYTES)
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist", hint=hint) from error
    except (OSError, ValueError) as error:
        raise unreadable(path, error, hint) from error
    return _converted(kind, content, path, hint)


def typed(kind: type[R], value: Json) -> R:
    """Return a JSON value as the type `kind`; fields that it does not have are left out. Raises
    ShapeError, with the place, also for what `__post_init__` refuses."""
    import msgspec

    try:
        return msgspec.convert(value, kind)
    except UnicodeEncodeError as error:
        raise ShapeError("it has half a character where no text may be") from error
    except msgspec.ValidationError as error:
        raise ShapeError(_worded(NOT_UNICODE.sub("expected Unicode text", f"{error}"))) from error


def _worded(text: str) -> str:
    """Return what the library says of a value that is not as declared, in words and with the place
    first: `stages[1].seconds: expected number, got text`."""
    message, at, place = text.rpartition(PLACE)
    message, place = (message, place.strip("`.")) if at else (text, "")
    if message.startswith("Expected "):
        message = message.replace("`", "").replace(" | ", " or ")
        message = KINDS.sub(lambda kind: JSON_KINDS.get(kind[0], kind[0]), message)
    message = message[:1].lower() + message[1:LONGEST_MESSAGE]
    return f"{place}: {message}" if place else message


def read_jsonl_file(kind: type[R], path: Path, hint: str, max_lines: int | None = None) -> list[R]:
    """Return the lines of a JSON-lines file as the type `kind`; fields that it does not have are
    left out. With `max_lines`, return the first lines. Return an empty list if the file is missing.
    Raises EnvironmentFault, with the line."""
    try:
        # Not splitlines, which also splits at other line separators inside captions.
        lines = read_text(path, BYTES, lines=max_lines).split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(path, error, hint) from error
    read = line_reader(kind, path, hint)
    return [read(line, f" at line {at}") for at, line in enumerate(lines, 1) if line]


def line_reader(kind: type[R], path: Path, hint: str) -> Callable[[str | bytes, str], R]:
    """Return a function that returns a line of a file as the type `kind`, by the line and where it
    stands. Raises EnvironmentFault."""
    import msgspec

    decode = msgspec.json.Decoder(kind).decode

    def read(line: str | bytes, at: str) -> R:
        try:
            return decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return _converted(kind, line, path, hint, at)  # half a character is refused above, too

    return read


def _converted(kind: type[R], content: str | bytes, path: Path, hint: str, at: str = "") -> R:
    """Return the JSON of a file as the type `kind`; `at`: where in the file it stands. Raises
    EnvironmentFault."""
    try:
        return typed(kind, parse(content if isinstance(content, str) else content.decode()))
    except ValueError as error:
        raise unreadable(path, error, hint, at) from error


def json_of(record: object) -> dict[str, Json]:
    """Return a dataclass, and those in it, as JSON objects."""
    import msgspec

    values: dict[str, Json] = msgspec.to_builtins(record)
    return values


def _refuse_unknown(declared: Any, value: Json, place: str) -> None:
    """Raise TypeError for a field that a dataclass does not have: msgspec ignores those."""
    types = _types(declared)
    if types is not None and isinstance(value, Mapping):
        if unknown := sorted(value.keys() - types.keys()):
            raise TypeError(f"{place} has no field {unknown[0]}")
        for name, one in value.items():
            _refuse_unknown(types[name], one, f"{place}.{name}")
    elif get_origin(declared) in (Union, UnionType):
        for inner in get_args(declared):
            _refuse_unknown(inner, value, place)
    elif _has_fields(declared) and isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            for inner in get_args(declared):
                _refuse_unknown(inner, one, place)


@cache
def _types(declared: Any) -> Mapping[str, Any] | None:
    """Return the type of each field of a dataclass by name; None for another type."""
    return get_type_hints(declared) if is_dataclass(declared) else None


@cache
def _has_fields(declared: Any) -> bool:
    """Return whether a type is or holds a dataclass. A job's 100,000 items do not."""
    return is_dataclass(declared) or any(map(_has_fields, get_args(declared)))

"""Builds the configuration of a command from typed Python keywords. Runs nothing."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from os import PathLike, fspath
from reprlib import Repr
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from artifacts.disk.json_shapes import Json
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.option_texts import members, parse_duration, parse_size
from artifacts.options import declared
from artifacts.wording import meant
from flows.core.console.display import Display
from flows.core.console.lines import in_cell
from flows.core.options.model import SIZES
from flows.core.options.sources import SourceOptions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ACCEPTED = {
    NoneType: "None",
    bool: "True or False",
    dict: 'a dict of texts, such as {"short": "What is it?"}',
    float: "a number",
    int: "a whole number",
    str: "a text",
    tuple: "texts in a list, or in one text with commas between",
}
"""Type of a field → what may be given for it."""
WHOLE = frozenset({"calibrate", "journal", "without"})
"""Lists of texts whose commas separate nothing."""
ALSO = {
    "labels": ", a path, or a list of texts",
    **dict.fromkeys(SIZES, " (bytes), or a text such as 8GiB"),
    "min_age": " (seconds), or a text such as 10m",
    "schema": ", a path, or the schema as a dict",
    "questions": ", a path, or a dict of questions by name",
}
"""Names → what else may be given."""
ONE_SOURCE = "Give a path, a pattern or an address, or a list of them"
EXACT = 1 << 53
"""Largest whole number up to which a float holds each: 2 is 2.0, as the command line reads it."""
Progress = bool | Literal["auto"]
"""Whether a run is shown as by the command. By default it is one line that is written over in a
notebook's cell, and nothing elsewhere."""
_SHORT = Repr()
G = TypeVar("G")


def display_for(progress: Progress) -> Display:
    """Return what shows a run. Raises UsageError for another value."""
    if progress not in (True, False, "auto"):
        raise UsageError(f"progress is {_SHORT.repr(progress)}", hint='Give True, False or "auto"')
    return Display(quiet=progress in (False, "auto"), fleeting=progress == "auto" and in_cell())


def checked(kind: type["DataclassInstance"], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of keywords as the fields of a configuration hold them. Raises UsageError
    for one of another type."""
    types = get_type_hints(kind)
    paths = {declaration.name for declaration in declared(kind) if declaration.option.path}
    return {n: _checked(n, value, types[n], n in paths) for n, value in given.items()}


def sources_of(given: Any) -> tuple[str, ...]:
    """Return sources as texts. Raises UsageError for what names no file."""
    is_one = isinstance(given, str | PathLike)
    if not is_one and (isinstance(given, bytes | Mapping) or not isinstance(given, Iterable)):
        raise odd("sources", given, ONE_SOURCE)
    return tuple(
        path_of("a source", source, ONE_SOURCE) for source in ([given] if is_one else given)
    )


def path_of(name: str, given: Any, hint: str = "Give a path") -> str:
    """Return a path as text. Raises UsageError for a value of another type."""
    try:
        path = fspath(given) if isinstance(given, PathLike) else given
    except Exception as error:  # the caller's own class
        raise odd(name, given, hint) from error
    if not isinstance(path, str):
        raise odd(name, given, hint)
    return path


def _checked(name: str, given: Any, wanted: Any, is_path: bool) -> Any:
    value = _taken(name, given, wanted, is_path)
    if not _is_of(value, wanted):
        kinds = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
        words = [ACCEPTED[get_origin(kind) or kind] for kind in kinds]
        raise odd(name, given, f"Give {' or '.join(words)}{ALSO.get(name, '')}")
    return value


def _taken(name: str, given: Any, wanted: Any, is_path: bool) -> Any:
    """Return a value in the form of its field, where it has another that is accepted."""
    given = _plain_number(given)
    if name in SIZES and (isinstance(given, str) or type(given) is int):
        return parse_size(str(given), name)
    if name == "min_age" and isinstance(given, str):
        return parse_duration(given, name)
    if name in ("schema", "questions") and isinstance(given, dict):
        return _json(name, given)
    if is_path and wanted is str and isinstance(given, PathLike):
        return path_of(name, given)
    if name == "labels" and isinstance(given, list | tuple):
        return _joined(given)
    if name in WHOLE:
        paths = [given] if isinstance(given, str | PathLike) else given
        if isinstance(paths, list | tuple):
            return tuple(path_of(name, one) if isinstance(one, PathLike) else one for one in paths)
    if get_origin(wanted) is tuple and isinstance(given, str):
        return members(name, given)
    if type(given) is int and abs(given) <= EXACT and float in (wanted, *get_args(wanted)):
        return float(given)
    return tuple(given) if get_origin(wanted) is tuple and isinstance(given, list) else given


def _plain_number(given: G) -> G | int | float:
    """Return a number of another library, such as numpy, as one of Python."""
    if isinstance(given, int | float):
        return given
    if isinstance(given, Integral):
        return int(given)
    return float(given) if isinstance(given, Real) else given


def _joined(labels: Sequence[Any]) -> str:
    """Return labels as one text, as the command line takes them."""
    if any(not isinstance(label, str) or "," in label for label in labels):
        raise odd("labels", labels, "Give texts without commas, or a file with one label per line")
    return ",".join(labels)


def _json(name: str, given: dict[str, Json]) -> str:
    try:
        return json.dumps(given, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{name} is no JSON: {' '.join(str(error).split())}",
            hint="Give a JSON Schema" if name == "schema" else "Give texts, lists and numbers",
        ) from error


def _is_of(value: Any, wanted: Any) -> bool:
    """Return whether a value, and all that is in it, is of a type; a whole number is a float, too,
    and a bool is none."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return any(_is_of(value, kind) for kind in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of(member, inner[0]) for member in value)
    if origin is dict:
        items = value.items() if isinstance(value, dict) else [(None, None)]
        return all(_is_of(key, inner[0]) and _is_of(member, inner[1]) for key, member in items)
    if wanted in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if wanted is float else wanted)


def odd(name: str, value: Any, hint: str) -> UsageError:
    """Return the error for a value of a type that is not taken."""
    shown = " ".join(_SHORT.repr(value).split())
    return UsageError(f"{name} is {shown} ({type(value).__name__})", hint=hint)


C = TypeVar("C", bound=SourceOptions)
K = TypeVar("K", bound="DataclassInstance")
Sources = str | PathLike[str] | Iterable[str | PathLike[str]]
"""Files, folders, globs or lists, as the command line takes them."""


def config_for(
    sources: Sources, options: Mapping[str, Any], kind: type[C], known: Iterable[str]
) -> C:
    """Return the configuration of a command over media. Raises UsageError as `config_with` does."""
    return config_with(kind, options, known, sources=sources_of(sources))


def anchored(config: C) -> C:
    """Return a configuration whose folders do not depend on the working directory of later."""
    paths = {name: getattr(config, name, "") for name in ("out", "store")}
    local: dict[str, Any] = {
        n: path for n, path in paths.items() if path and path[0] != "~" and "://" not in path
    }
    return replace(config, **{name: os.path.abspath(path) for name, path in local.items()})


def config_with(kind: type[K], options: Mapping[str, Any], known: Iterable[str], **fixed: Any) -> K:
    """Return a configuration with those of these options, and of the `fixed` fields, that it has.
    Raises UsageError for an option that is not among those `known`, for a value of another type
    than its field has, and for a missing option, and EnvironmentFault without a current folder."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise EnvironmentFault(
            "the current folder was deleted", hint="Call os.chdir with another one"
        ) from error
    if unknown := sorted(options.keys() - set(known)):
        raise UsageError(
            f"unknown option {unknown[0]}{meant(unknown[0], known)}",
            hint="Options are those of the command: --max-new-tokens 64 is max_new_tokens=64",
        )
    own = {declaration.name for declaration in declared(kind)}
    values = {name: value for name, value in {**fixed, **options}.items() if name in own}
    for declaration in declared(kind):
        if declaration.is_required and declaration.name not in values:
            raise UsageError(f"{declaration.name} is missing", hint=f"Give {declaration.name}=")
    return kind(**checked(kind, values))

"""Builds the configuration of a command from Python keywords. Runs nothing."""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, TypeVar

from artifacts.errors import UsageError
from artifacts.options import declared
from flows.options.media import SourceOptions
from penstock.arguments import checked, known_only, sources_of

C = TypeVar("C", bound=SourceOptions)
K = TypeVar("K")
Sources = str | PathLike[str] | Iterable[str | PathLike[str]]
"""Files, folders, globs or lists, as the command line takes them."""


def config_for(
    sources: Sources, options: Mapping[str, Any], kind: type[C], known: Iterable[str]
) -> C:
    """Return the configuration of a command over media. Raises UsageError as `config_of` does."""
    known_only(options, known)
    return config_of(kind, options, sources=sources_of(sources))


def config_of(kind: type[K], options: Mapping[str, Any], **fixed: Any) -> K:
    """Return a configuration with these options; `fixed` are fields that need no check. Raises
    UsageError for a value of another type than its field has, and for a missing option."""
    for each in declared(kind):
        if each.is_required and each.name not in {*options, *fixed}:
            raise UsageError(f"{each.name} is missing", hint=f"Give {each.name}=")
    return kind(**checked(kind, options), **fixed)


def config_with(kind: type[K], options: Mapping[str, Any], known: Iterable[str], **fixed: Any) -> K:
    """Return the same, of the options that the configuration has. Raises UsageError, also for an
    option that is not among those `known`."""
    known_only(options, known)
    names = {each.name for each in declared(kind)}
    return config_of(
        kind,
        {name: value for name, value in options.items() if name in names},
        **{name: value for name, value in checked(kind, fixed).items() if name in names},
    )

"""Command-line options as typed keywords. Runs nothing."""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, TypeVar

from flows.options.media import SourceOptions
from penstock.arguments import checked, known_only, sources_of

C = TypeVar("C", bound=SourceOptions)
Sources = str | PathLike[str] | Iterable[str | PathLike[str]]
"""Files, folders, globs or lists, as the command line takes them."""


def config_for(
    sources: Sources, options: Mapping[str, Any], kind: type[C], known: Iterable[str]
) -> C:
    """Return the configuration that these mean. Raises UsageError, also for an option that is not
    among those `known`, and for a value of another type than its field has."""
    known_only(options, known)
    return kind(sources=sources_of(sources), **checked(kind, options))

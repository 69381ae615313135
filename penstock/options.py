"""Takes the options of the command line as keywords, with their types; runs nothing."""

from collections.abc import Iterable
from os import PathLike
from typing import TypeVar

from flows.options.media import SourceOptions
from penstock.arguments import checked, known_only, sources_of
from penstock.keywords import FeatureOptions

C = TypeVar("C", bound=SourceOptions)
Sources = str | PathLike[str] | Iterable[str | PathLike[str]]
"""Files, folders, globs or lists, as the command line takes them."""


def config_for(
    sources: Sources, options: FeatureOptions, kind: type[C], known: type[FeatureOptions]
) -> C:
    """Return the configuration that these mean. Raises UsageError, also for an option that is not
    among those `known`, and for a value of another type than its field has."""
    known_only(options, known.__annotations__)
    return kind(sources=sources_of(sources), **checked(kind, options))

"""Derives a command's options from its configuration class, and the configuration from parsed
arguments.
"""

import argparse
from collections.abc import Collection
from typing import Any, TypeVar

from artifacts.options import Declared, declared

C = TypeVar("C")
Groups = dict[str, Any]
"""Heading, or heading and name of an exclusive group → argparse group."""


def add_options(
    parser: argparse.ArgumentParser,
    config: type[Any],
    *headings: str,
    without: Collection[str] = (),
) -> Groups:
    """Add the options of a configuration, each under its heading. Return the groups, so that a
    command can add its own options. `headings` come first, the others in field order. The fields in
    `without` are skipped."""
    groups: Groups = {name: parser.add_argument_group(name) for name in headings}
    for each in declared(config):
        if each.name not in without:
            _add(_group_of_option(parser, groups, each), each)
    return groups


def group_of(parser: argparse.ArgumentParser, groups: Groups, heading: str) -> Any:
    """Return the argparse group of a heading."""
    if not heading:
        return parser
    if heading not in groups:
        groups[heading] = parser.add_argument_group(heading)
    return groups[heading]


def _group_of_option(parser: argparse.ArgumentParser, groups: Groups, each: Declared) -> Any:
    group = group_of(parser, groups, each.option.heading)
    if each.option.excludes:
        name = f"{each.option.heading}: {each.option.excludes}"
        if name not in groups:
            groups[name] = group.add_mutually_exclusive_group()
        return groups[name]
    return group


def _add(group: Any, each: Declared) -> None:
    option = each.option
    if each.kind is bool:
        group.add_argument(each.flag, action="store_true", help=option.help, dest=each.name)
    else:
        group.add_argument(each.name if option.positional else each.flag, **_keywords(each))


def _keywords(each: Declared) -> dict[str, Any]:
    """Return the keyword arguments of `add_argument`."""
    option, default = each.option, each.field.default
    keywords: dict[str, Any] = {"help": option.help}
    if option.nargs:
        keywords["nargs"] = option.nargs
    if option.positional:
        return {**keywords, "metavar": option.metavar or each.name.upper()}
    keywords |= {"metavar": option.metavar, "dest": each.name}
    if option.repeated:
        return {**keywords, "action": "append"}
    if option.parse is None and each.kind in (int, float):
        keywords["type"] = each.kind
    if each.is_required:
        return {**keywords, "required": True}
    if "%(default)s" in option.help:
        keywords["default"] = default  # others are None if not given; the field's default applies
    return keywords


def config_from(given: argparse.Namespace, config: type[C], **fixed: Any) -> C:
    """Build a configuration from parsed options. `fixed` are fields without an option. Raises
    UsageError."""
    named = {
        each.name: _value(getattr(given, each.name), each)
        for each in declared(config)
        if getattr(given, each.name, None) is not None
    }
    return config(**(named | fixed))


def _value(given: Any, each: Declared) -> Any:
    """Convert a value to its field's type."""
    if each.option.parse is not None and (each.option.repeated or isinstance(given, str)):
        return each.option.parse(given)
    if each.kind is tuple and isinstance(given, str):
        return tuple(word.strip() for word in given.split(",") if word.strip())
    return tuple(given) if isinstance(given, list) else given

"""Derives a command's options from its configuration class, and the configuration from parsed
arguments. Runs nothing.
"""

import argparse
from collections.abc import Collection
from typing import Any, TypeVar

from artifacts.options import Declared, declared

C = TypeVar("C")
Places = dict[str, Any]
"""Heading, or heading and name of exclusive options → what options are added to."""


def add_options(
    parser: argparse.ArgumentParser,
    config: type[Any],
    *headings: str,
    without: Collection[str] = (),
) -> Places:
    """Add the options of a configuration, each under its heading, and return the places, so that a
    command can add options of its own. `headings` come first, the others in the order of the
    fields; the fields of `without` are not added."""
    places: Places = {name: parser.add_argument_group(name) for name in headings}
    for each in declared(config):
        if each.name not in without:
            _add(_place(parser, places, each), each)
    return places


def place_of(parser: argparse.ArgumentParser, places: Places, heading: str) -> Any:
    """Return what the options under a heading are added to."""
    if not heading:
        return parser
    if heading not in places:
        places[heading] = parser.add_argument_group(heading)
    return places[heading]


def _place(parser: argparse.ArgumentParser, places: Places, each: Declared) -> Any:
    place = place_of(parser, places, each.option.heading)
    if each.option.excludes:
        name = f"{each.option.heading}: {each.option.excludes}"
        if name not in places:
            places[name] = place.add_mutually_exclusive_group()
        return places[name]
    return place


def _add(place: Any, each: Declared) -> None:
    option = each.option
    if option.opposite[0]:
        keep: dict[str, Any] = {"dest": each.name, "action": "store_const"}
        group = place.add_mutually_exclusive_group()
        group.add_argument(each.flag, const=True, help=option.help, **keep)
        group.add_argument(option.opposite[0], const=False, help=option.opposite[1], **keep)
    elif each.kind is bool:
        place.add_argument(each.flag, action="store_true", help=option.help, dest=each.name)
    else:
        place.add_argument(each.name if option.positional else each.flag, **_form(each))


def _form(each: Declared) -> dict[str, Any]:
    """Return the keywords of `add_argument`."""
    option, default = each.option, each.field.default
    form: dict[str, Any] = {"help": option.help}
    if option.nargs:
        form["nargs"] = option.nargs
    if option.positional:
        return {**form, "metavar": option.metavar or each.name.upper()}
    form |= {"metavar": option.metavar, "dest": each.name}
    if option.repeated:
        return {**form, "action": "append"}
    if option.parse is None and each.kind in (int, float):
        form["type"] = each.kind
    if each.is_required:
        return {**form, "required": True}
    if "%(default)s" in option.help:
        form["default"] = default  # else None: what is not given has the default of its field
    return form


def config_from(given: argparse.Namespace, config: type[C], **fixed: Any) -> C:
    """Return the configuration that the options mean; `fixed` are fields that are no options here.
    Raises UsageError."""
    named = {
        each.name: _value(getattr(given, each.name), each)
        for each in declared(config)
        if getattr(given, each.name, None) is not None
    }
    return config(**(named | fixed))


def _value(given: Any, each: Declared) -> Any:
    """Return a value as its field holds it."""
    if each.option.parse is not None and (each.option.repeated or isinstance(given, str)):
        return each.option.parse(given)
    if each.kind is tuple and isinstance(given, str):
        return tuple(word.strip() for word in given.split(",") if word.strip())
    return tuple(given) if isinstance(given, list) else given

"""Adds the options of commands to their parsers. They are derived from the configuration
classes."""

import argparse
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from artifacts.options import Declared, declared
from flows.core.options.commands import CaptionConfig
from flows.core.options.formats import FILES, LABELS, MEMORY, MODEL, SAMPLING, TEXT, VECTORS
from flows.core.options.sources import SourceOptions
from flows.core.options.vectors import INDEX, LabelConfig, VectorConfig
from stages.decode.generation import WORDS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Groups = dict[str, argparse._ActionsContainer]
"""Heading, or heading and name of an exclusive group → argparse group."""


def add_options(
    parser: argparse.ArgumentParser,
    config: type["DataclassInstance"],
    *headings: str,
    without: Collection[str] = (),
) -> Groups:
    """Add the options of a configuration, each under its heading. Return the groups, so that a
    command can add its own options. `headings` come first, the others in field order. The fields in
    `without` are skipped."""
    groups: Groups = {name: parser.add_argument_group(name) for name in headings}
    for declaration in declared(config):
        if declaration.name not in without:
            _add(_group_of_option(parser, groups, declaration), declaration)
    return groups


def group_of(
    parser: argparse.ArgumentParser, groups: Groups, heading: str
) -> argparse._ActionsContainer:
    if not heading:
        return parser
    if heading not in groups:
        groups[heading] = parser.add_argument_group(heading)
    return groups[heading]


def _group_of_option(
    parser: argparse.ArgumentParser, groups: Groups, declaration: Declared
) -> argparse._ActionsContainer:
    group = group_of(parser, groups, declaration.option.heading)
    if declaration.option.excludes:
        name = f"{declaration.option.heading}: {declaration.option.excludes}"
        if name not in groups:
            groups[name] = group.add_mutually_exclusive_group()
        return groups[name]
    return group


def _add(group: argparse._ActionsContainer, declaration: Declared) -> None:
    option = declaration.option
    if declaration.kind is bool:
        action = "store_false" if declaration.field.default is True else "store_true"
        group.add_argument(declaration.flag, action=action, help=option.help, dest=declaration.name)
    else:
        group.add_argument(
            declaration.name if option.positional else declaration.flag, **_keywords(declaration)
        )


def _keywords(declaration: Declared) -> dict[str, Any]:
    option, default = declaration.option, declaration.field.default
    keywords: dict[str, Any] = {"help": option.help}
    if option.nargs:
        keywords["nargs"] = option.nargs
    if option.positional:
        return {**keywords, "metavar": option.metavar or declaration.name.upper()}
    keywords |= {"metavar": option.metavar, "dest": declaration.name}
    if option.repeated:
        return {**keywords, "action": "append"}
    if option.parse is None and declaration.kind in (int, float):
        keywords["type"] = declaration.kind
    if declaration.is_required:
        return {**keywords, "required": True}
    if "%(default)s" in option.help:
        keywords["default"] = default  # others are None if not given; the field's default applies
    return keywords


def add_caption_options(
    parser: argparse.ArgumentParser, config: type[SourceOptions] = CaptionConfig
) -> None:
    """Add the options of `caption` and `plan`, or of another command over videos."""
    headings = (MODEL, SAMPLING, MEMORY, *((TEXT, WORDS) if config is CaptionConfig else ()), FILES)
    groups = add_options(parser, config, *headings)
    groups[f"{MODEL}: prompt"].add_argument(
        "--prompt-file", metavar="F", help="text file with the prompt"
    )


def add_ray_option(group: argparse._ActionsContainer) -> None:
    """Add the option of the commands that can run on a Ray cluster."""
    group.add_argument(
        "--ray", metavar="ADDRESS", default="", help="run on this Ray cluster: HOST:PORT, or auto"
    )


def add_quiet_options(parser: argparse.ArgumentParser) -> argparse._ActionsContainer:
    """Add the options that control printing, and return their group."""
    group = parser.add_argument_group("running")
    group.add_argument("--dry-run", action="store_true", help="print what would be done, then exit")
    _add_monitoring_options(group)
    add_print_options(group)
    return group


def _add_monitoring_options(group: argparse._ActionsContainer) -> None:
    """Add the options that report a run to other programs."""
    group.add_argument(
        "--metrics-file", metavar="FILE", help="write Prometheus metrics here during the run"
    )
    group.add_argument("--notify", metavar="URL", help="post one JSON to this address at the end")


def add_print_options(group: argparse._ActionsContainer) -> None:
    """Add the two options that change what a command prints, which exclude each other."""
    quiet = group.add_mutually_exclusive_group()
    quiet.add_argument("--quiet", action="store_true", help="print errors only")
    quiet.add_argument("--json", action="store_true", help="print events as JSON lines")


def add_running_options(parser: argparse.ArgumentParser, groups: Groups, dry_run: str) -> None:
    group = group_of(parser, groups, "running")
    group.add_argument("--dry-run", action="store_true", help=dry_run)
    _add_monitoring_options(group)
    add_print_options(group)


def add_vector_options(
    parser: argparse.ArgumentParser, config: type[VectorConfig], *, without: Collection[str] = ()
) -> argparse._ActionsContainer:
    """Add the options of a command that computes vectors. Return the group of those of running."""
    headings = [MODEL, VECTORS, MEMORY, FILES]
    if issubclass(config, LabelConfig):
        headings.insert(0, LABELS)
    if "model" in without:
        headings.remove(MODEL)
    add_options(parser, config, *headings, without=without)
    return add_quiet_options(parser)


def add_index_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--index", default=INDEX, metavar="DIR", help="folder of the index [%(default)s]"
    )

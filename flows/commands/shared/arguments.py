"""Declares the options of the commands over media, and builds their configurations.

A command's options are derived from its configuration class, and the configuration from the parsed
arguments. The configuration of a caption run can also be built from the folder that records the
run.
"""

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from artifacts.disk.paths import text_named
from artifacts.errors import UsageError
from artifacts.option_texts import members
from artifacts.options import Declared, declared
from flows.commands.shared.parser import parse
from flows.core.options.commands import CaptionConfig
from flows.core.options.formats import FILES, MEMORY, MODEL, SAMPLING, TEXT
from flows.core.options.media import SourceOptions
from flows.core.options.training import RecordedRun
from flows.outputs.record.run_record import repeated
from stages.decode.generation import WORDS

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
        action = "store_false" if each.field.default is True else "store_true"
        group.add_argument(each.flag, action=action, help=option.help, dest=each.name)
    else:
        group.add_argument(each.name if option.positional else each.flag, **_keywords(each))


def _keywords(each: Declared) -> dict[str, Any]:
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
        return members(each.flag, given)
    return tuple(given) if isinstance(given, list) else given


PROMPT_BYTES = 1 << 24
"""Largest size in bytes of a `--prompt-file`. No model reads as much."""
S = TypeVar("S", bound=SourceOptions)


def add_caption_options(
    parser: argparse.ArgumentParser, config: type[SourceOptions] = CaptionConfig
) -> None:
    """Add the options of `caption` and `plan`, or of another command over videos."""
    headings = (MODEL, SAMPLING, MEMORY, *((TEXT, WORDS) if config is CaptionConfig else ()), FILES)
    groups = add_options(parser, config, *headings)
    groups[f"{MODEL}: prompt"].add_argument(
        "--prompt-file", metavar="F", help="text file with the prompt"
    )


def add_ray_option(group: Any) -> None:
    """Add the option of the commands that can run on a Ray cluster."""
    group.add_argument(
        "--ray", metavar="ADDRESS", default="", help="run on this Ray cluster: HOST:PORT, or auto"
    )


def add_quiet_options(parser: argparse.ArgumentParser) -> Any:
    """Add the options that control printing, and return their group."""
    group = parser.add_argument_group("running")
    group.add_argument("--dry-run", action="store_true", help="print what would be done, then exit")
    add_print_options(group)
    return group


def add_print_options(group: Any) -> None:
    """Add the two options that change what a command prints, which exclude each other."""
    quiet = group.add_mutually_exclusive_group()
    quiet.add_argument("--quiet", action="store_true", help="print errors only")
    quiet.add_argument("--json", action="store_true", help="print events as JSON lines")


def config_of(
    given: argparse.Namespace, config: type[S], *, sources: bool = True, **fixed: Any
) -> S:
    """Build a configuration from parsed options, with the `fixed` fields. Require sources unless
    `sources` is False. Raises UsageError."""
    if getattr(given, "prompt_file", None) is not None:
        file, hint = Path(given.prompt_file), "Give a text file, or --prompt"
        given.prompt = text_named(file, "prompt-file", PROMPT_BYTES, hint).strip()
        if not given.prompt:
            raise UsageError(
                f"--prompt-file {given.prompt_file} is empty",
                hint="Leave it out for a description",
            )
    built = config_from(given, config, **fixed)
    if sources:
        built.check_sources()
    return built


def recorded_run(command: Mapping[str, Any]) -> RecordedRun:
    """Return the caption run of a recorded command. Paths are relative to the working directory.
    Raises UsageError."""
    config = config_of(parse(repeated(command["words"])), CaptionConfig)
    return RecordedRun(config=config, command=command)

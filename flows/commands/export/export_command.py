"""Implements `penstock export`: quantizes a model and compares it with the original on
real media.
"""

import argparse
import shlex
import sys
from functools import partial

from artifacts.errors import UsageError, excluding
from artifacts.options import declared
from flows.commands.export import EXPORTS, GRAPHS
from flows.commands.export.options import ExportConfig
from flows.commands.export.result import Exported, refuse_foreign_folder
from flows.commands.plan.plan_command import show
from flows.commands.shared.arguments import config_from
from flows.commands.shared.exit_report import print_result
from flows.commands.shared.options import add_options, add_running_options, group_of
from flows.core.console.display import Display
from flows.core.console.lines import print_lines
from flows.core.options.commands import RunOptions
from stages.export import PACKED


def export_command(given: argparse.Namespace) -> int:
    if given.features is not None:
        return _export_features(given)
    if not given.model or not given.to or given.license is not None:
        raise UsageError(
            "export needs MODEL and --to KIND, or --features RUN and --license NAME",
            hint="See `penstock export --help`",
        )
    from flows.commands.export.run import export, refuse_other_checkpoint
    from flows.commands.export.samples import evaluation_media

    config = config_from(given, ExportConfig)
    refuse_foreign_folder(config)  # before the demo clips are rendered
    display = Display(quiet=given.quiet, as_json=given.json)
    with evaluation_media(config, display.print_line) as sources:
        captioning: RunOptions = config.captioning(sources)
        if given.dry_run:
            pipelines = GRAPHS if config.graphs else EXPORTS
            check = partial(refuse_other_checkpoint, config)
            return show(captioning, *pipelines, as_json=given.json, check=check)
        result = export(captioning, config, display)
    if not result.accepted:
        given.missed = f"quality limit missed: {'; '.join(result.parity.missed)}"
    if print_result(given, result, display) or not (given.json or result.accepted):
        _print_result(result, graphs=config.graphs)
    return result.exit_code


def _export_features(given: argparse.Namespace) -> int:
    from flows.commands.export.features import export_features

    own = ("out", "trust_remote_code")
    others = [d for d in declared(ExportConfig) if d.name not in own]
    for option in others:
        if getattr(given, option.name) not in (None, option.field.default):
            shown = option.option.metavar if option.option.positional else option.flag
            raise excluding("--features", shown)
    display = Display(quiet=given.quiet, as_json=given.json)
    exported = export_features(
        given.features,
        given.out,
        given.license or "",
        display,
        trust_remote_code=given.trust_remote_code,
        dry_run=given.dry_run,
    )
    if print_result(given, exported, display):
        print_lines(exported.line())
    return exported.exit_code


def _print_result(result: Exported, *, graphs: bool) -> None:
    for missed in result.parity.missed:
        print_lines(f"quality limit missed: {missed}", to=sys.stderr)
    if not result.accepted:
        print_lines(f"kept in {result.out}; add --accept to use it anyway", to=sys.stderr)
        return
    command = "caption" if result.parity.text is not None else "embed"
    used = [command, "SOURCES", "--model", str(result.out)]
    if graphs:
        used += ["--vision-backend", "onnx"]
    others = ", vLLM or transformers" if result.parity.recipe.get("kind") in PACKED else ""
    print_lines(f"{result.line()}; use it with `penstock {shlex.join(used)}`{others}")


def add_export(parser: argparse.ArgumentParser) -> None:
    from flows.commands.export.options import JUDGEMENT, ExportConfig

    model, kind = (d.option for d in declared(ExportConfig) if d.name in ("model", "to"))
    parser.add_argument("model", nargs="?", metavar=model.metavar, help=model.help)
    parser.add_argument("--to", metavar=kind.metavar, help=kind.help)
    groups = add_options(parser, ExportConfig, JUDGEMENT, without=("model", "to"))
    group = group_of(parser, groups, "stored features in place of a model")
    group.add_argument(
        "--features", metavar="RUN", help="folder of a caption run: write a data set to train on"
    )
    group.add_argument("--license", metavar="NAME", help="licence of that data set")
    add_running_options(parser, groups, "print what would be written, then exit")

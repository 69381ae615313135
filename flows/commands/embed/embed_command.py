"""Implements `penstock embed`, and prints the result."""

import argparse
from contextlib import closing

from flows.commands.plan.plan_command import show
from flows.commands.shared.arguments import config_of
from flows.commands.shared.exit_report import print_result
from flows.commands.shared.options import add_ray_option, add_vector_options
from flows.core.console.display import READING, Display
from flows.core.console.lines import print_lines
from flows.core.options.vectors import EmbedConfig
from flows.core.pipelines import EMBED


def embed_command(given: argparse.Namespace) -> int:
    config = config_of(given, EmbedConfig)
    display = Display(quiet=given.quiet, as_json=given.json)
    if given.dry_run:
        return show(config, EMBED, as_json=given.json, dry_run="embed")
    with closing(display):
        display.doing(READING)
        if not given.ray:
            from flows.execution.run import embed

            result = embed(config, display)
        else:
            result = given.elsewhere.on_cluster("embed", config, display, given.ray)
    if print_result(given, result, display):
        print_lines(result.line())
    return result.exit_code


def add_embed(parser: argparse.ArgumentParser) -> None:
    add_ray_option(add_vector_options(parser, EmbedConfig))

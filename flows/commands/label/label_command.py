"""Implements `penstock label`, and prints the result."""

import argparse
import shlex
from contextlib import closing

from flows.commands.plan.plan_command import show
from flows.commands.shared.arguments import config_of
from flows.commands.shared.exit_report import print_result
from flows.commands.shared.options import add_ray_option, add_vector_options
from flows.core.console.display import READING, Display
from flows.core.console.lines import print_lines
from flows.core.options.vectors import LabelConfig


def label_command(given: argparse.Namespace) -> int:
    config = config_of(given, LabelConfig)
    display = Display(quiet=given.quiet, as_json=given.json)
    with closing(display):
        if not given.dry_run:
            display.doing(READING)
        from flows.commands.label.run import label, pipeline_of, requested_labels

        if given.dry_run:
            requested_labels(config)  # reports now what cannot be read
            return show(config, pipeline_of(config), as_json=given.json, dry_run="label")
        if not given.ray:
            result = label(config, display)
        else:
            result = given.elsewhere.on_cluster("label", config, display, given.ray)
    if print_result(given, result, display):
        report = f"penstock report {shlex.quote(str(result.out))}"
        print_lines(*result.notes(), f"{result.line()}; view them with `{report}`")
    return result.exit_code


def add_label(parser: argparse.ArgumentParser) -> None:
    add_ray_option(add_vector_options(parser, LabelConfig))

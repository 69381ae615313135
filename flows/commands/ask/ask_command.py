"""Implements `penstock ask`, and prints what was written."""

import argparse
import sys
from contextlib import closing
from functools import partial

from artifacts.texts.decisions import read_decisions
from flows.commands.ask import pipeline_of
from flows.commands.ask.keep import parse_keep
from flows.commands.plan.plan_command import show
from flows.commands.shared.arguments import config_of
from flows.commands.shared.exit_report import print_result
from flows.commands.shared.options import add_options, add_quiet_options
from flows.core.console.display import READING, Display
from flows.core.console.lines import print_lines
from flows.core.options.formats import FILES, MEMORY, MODEL, QUESTIONS, SAMPLING
from flows.core.options.questions import AskConfig


def ask_command(given: argparse.Namespace) -> int:
    config = config_of(given, AskConfig)
    parse_keep(config.keep, config.every_question)  # reports now what cannot be read
    read_decisions(config.decisions, config.every_question)
    if given.dry_run:
        from flows.commands.ask.run import check

        fits, pipeline = partial(check, config.every_question), pipeline_of(config.model)
        return show(config, pipeline, as_json=given.json, dry_run="ask", check=fits)
    display = Display(quiet=given.quiet, as_json=given.json)
    with closing(display):
        display.doing(READING)
        from flows.commands.ask.run import ask
        from flows.outputs.record.record_writer import remember

        written = ask(config, display, on_begin=partial(remember, given.words))
    if print_result(given, written, display):
        print_lines(*(f"note: {note}" for note in written.notes()), to=sys.stderr)
        print_lines(*written.lines())
    return written.exit_code


def add_ask(parser: argparse.ArgumentParser) -> None:
    add_options(parser, AskConfig, QUESTIONS, MODEL, SAMPLING, MEMORY, FILES)
    add_quiet_options(parser)

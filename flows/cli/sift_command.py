"""Implements `penstock sift`, and prints the result."""

import argparse
import shlex
from contextlib import closing

from flows.cli.exit_report import print_result
from flows.cli.options import config_of
from flows.console.display import Display
from flows.console.lines import print_lines
from flows.console.tables import table_lines
from flows.options.sift import SiftConfig


def sift_command(given: argparse.Namespace) -> int:
    """Run the command, and return its exit code. Raises PenstockError."""
    if given.marks:
        from flows.results.sifted.marks import MARKS

        rows = [(name, mark.range, mark.text) for name, mark in MARKS.items()]
        print("\n".join(table_lines(("mark", "range", "meaning"), rows)))
        return 0
    config = config_of(given, SiftConfig)
    display = Display(quiet=given.quiet, as_json=given.json)
    with closing(display):
        from flows.running.sift import pending, sift

        if given.dry_run:
            print_lines(pending(config, display))
            return 0
        result = sift(config, display)
    if print_result(given, result, display):
        then = shlex.join(["penstock", "caption", str(result.kept_list)])
        print_lines(f"{result.line()}; caption them with `{then}`")
    return result.exit_code

"""Implements `penstock sift`, and prints the result."""

import argparse
import json
import shlex
from contextlib import closing

from artifacts.disk.files import encoded
from artifacts.errors import Interrupted, redacted
from artifacts.schema import values_of
from artifacts.wording import counted
from flows.commands.shared.arguments import config_of
from flows.commands.shared.exit_report import print_result
from flows.commands.shared.options import add_vector_options
from flows.core.console.display import Display
from flows.core.console.lines import print_lines, table_lines
from flows.core.options.vectors import SiftConfig


def sift_command(given: argparse.Namespace) -> int:
    if given.marks:
        from flows.commands.sift.marks import MARKS

        if given.json:
            print(json.dumps({name: values_of(mark) for name, mark in MARKS.items()}, indent=1))
            return 0
        rows = [(name, mark.range, mark.text) for name, mark in MARKS.items()]
        print("\n".join(table_lines(("mark", "range", "meaning"), rows)))
        return 0
    config = config_of(given, SiftConfig)
    display = Display(quiet=given.quiet, as_json=given.json)
    with closing(display):
        from flows.commands.sift.run import pending, sift

        if given.dry_run:
            counts = pending(config, display)
            line = f"{counted(counts['files'], 'file')}: {counts['to_mark']:,} of "
            line += f"{counts['contents']:,} contents to mark"
            print_lines(encoded(counts, ensure_ascii=True) if given.json else line)
            return 0
        try:
            result = sift(config, display)
        except Interrupted as error:
            again = shlex.join(["penstock", *given.words])
            error.hint = f"Marks are kept, but no table is written yet; continue: {redacted(again)}"
            raise
    if print_result(given, result, display):
        then = shlex.join(["penstock", "caption", str(result.kept_list)])
        print_lines(result.line() + (f"; caption them with `{then}`" if result.kept else ""))
    return result.exit_code


def add_sift(parser: argparse.ArgumentParser) -> None:
    add_vector_options(parser, SiftConfig)
    parser.add_argument("--marks", action="store_true", help="print the marks and their ranges")

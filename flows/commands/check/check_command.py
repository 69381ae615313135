"""Implements `penstock check`: says what a trainer would not see of a data set that a run wrote.

Nothing is downloaded, and no model runs, but the language half with `--fix`.
"""

import argparse
import json
import sys
from pathlib import Path

from artifacts.disk.paths import required_path
from artifacts.texts.trainer_models import parse_trainers
from flows.commands.check.run import CheckRequest, check_run, lines_of
from flows.core.console.lines import print_lines
from flows.core.options.text import TRUST_FOLDER_HELP


def check_command(given: argparse.Namespace) -> int:
    """Check the data sets of a run; return 1 if a trainer would not see all. Raises UsageError,
    EnvironmentFault."""
    request = CheckRequest(
        trainers=tuple(parse_trainers(given.trainer or [])),
        forbid=tuple(word.strip() for word in (given.forbid or "").split(",") if word.strip()),
        tokenizers=given.tokenizers,
        fix=given.fix,
        trust=given.trust_folder,
    )
    lines, sets = check_run(Path(required_path(given.out)), request)
    print_lines(*lines, to=sys.stderr if given.json else None)
    if given.json:
        print(json.dumps([checked.values for checked in sets], indent=1))
    else:
        print_lines(*(line for checked in sets for line in lines_of(checked)))
    return int(any(checked.rules or not checked.samples for checked in sets))


def add_trained(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is trained."""
    parser.add_argument(
        "--trainer",
        action="append",
        metavar="TRAINER:MODEL",
        help="what is trained [what the run was written for]",
    )
    parser.add_argument(
        "--tokenizers", metavar="DIR", help="folder of tokenizers, or a trainer's cache of them"
    )


def add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    add_trained(parser)
    parser.add_argument("--forbid", metavar="W,W", help="words that no caption may have")
    parser.add_argument(
        "--fix", action="store_true", help="make captions shorter that are too long, but a person's"
    )
    parser.add_argument("--trust-folder", action="store_true", help=TRUST_FOLDER_HELP)
    parser.add_argument("--json", action="store_true", help="print all as JSON")

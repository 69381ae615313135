"""Implements `penstock review`, which serves a run's captions for correction until it is
stopped.
"""

import argparse
import sys
from pathlib import Path

from artifacts.disk.paths import required_path
from artifacts.errors import UsageError
from artifacts.packages import require_extra
from artifacts.texts.trainer_models import models_named, parse_trainers
from flows.commands.check.check_command import add_trained
from flows.commands.check.run import tokenizers_in
from flows.core.console.lines import print_lines
from flows.core.options.text import TRUST_FOLDER_HELP
from flows.interfaces.studio.studio_command import BEHIND_HELP
from flows.outputs.record.run_record import RUN_RECORD


def review_command(given: argparse.Namespace) -> int:
    """Serve the review until it is stopped, and return 0. Raises UsageError, EnvironmentFault."""
    require_extra("serve", "`penstock review`")
    from flows.commands.review.folder_texts import take_in
    from flows.commands.review.seen_captions import Trained
    from flows.interfaces.studio.server import PageAddress, review
    from flows.interfaces.studio.studio_command import config_of

    folder, out = Path(required_path(given.out)), Path(required_path(given.into or given.out))
    if given.into:
        print_lines(*(f"note: {note}" for note in take_in(folder, out)), to=sys.stderr)
    elif not (folder / RUN_RECORD).exists() and any(folder.glob("*.txt")):
        raise UsageError(
            f"no run has written to {folder}",
            hint="Name the --out folder of a run, or give an --out for decisions on the texts here",
        )
    address = PageAddress(given.port, given.behind)
    trainers = parse_trainers(given.trainer or [])
    models_named(trainers)  # which refuses what there is not
    trained = Trained(trainers=trainers, tokenizers=tokenizers_in(given.tokenizers))
    review(out, address, given.order, config_of, trained, trust=given.trust_folder)
    return 0


ORDERS = ("source", "name", "longest", "shortest", "doubt")
"""Orders of a review; the page's menu offers them too."""


def add_review(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "out",
        metavar="OUT",
        nargs="?",
        default="penstock-out",
        help="folder of a run; with --out, of media and texts beside them [%(default)s]",
    )
    parser.add_argument(
        "--out", dest="into", metavar="DIR", help="folder for decisions on texts that no run wrote"
    )
    parser.add_argument(
        "--port", type=int, default=8010, metavar="P", help="port; 0: any free port [%(default)s]"
    )
    parser.add_argument(
        "--order", choices=ORDERS, default=ORDERS[0], help="order of the captions [%(default)s]"
    )
    add_trained(parser)
    parser.add_argument("--behind", default="", metavar="URL", help=BEHIND_HELP)
    parser.add_argument("--trust-folder", action="store_true", help=TRUST_FOLDER_HELP)

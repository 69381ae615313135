"""Declares the options of `penstock cache`."""

import argparse

from flows.cli.options import add_caption_options
from flows.options.model import STORE_HELP
from flows.options.rebuild import RebuildConfig


def add_cache_commands(cache: argparse.ArgumentParser) -> None:
    """Add the actions and options of `cache`."""
    actions = cache.add_subparsers(dest="action", metavar="ACTION", required=True)
    ls = actions.add_parser("ls", help="list contents by model, age and size")
    ls.add_argument("--json", action="store_true", help="print the list as JSON")
    verify = actions.add_parser("verify", help="check every byte; quarantine damaged packs")
    gc = actions.add_parser("gc", help="delete the least recently used packs")
    gc.add_argument("--max", required=True, metavar="SIZE", help="target size: 200GB, 1.5TiB")
    gc.add_argument("--dry-run", action="store_true", help="print what would be deleted")
    clear = actions.add_parser("clear", help="delete all records, of any format")
    clear.add_argument("--yes", action="store_true", help="do not ask")
    for action in (ls, verify, gc, clear):
        action.add_argument("--store", default="", metavar="DIR", help=STORE_HELP)
    rebuild = actions.add_parser("rebuild", help="encode SOURCES without stored features")
    add_caption_options(rebuild, RebuildConfig)
    add = rebuild.add_argument_group("rebuild").add_argument
    add("--name", default="", metavar="N", help="name of the job, if several share its sources")
    add("--prune", action="store_true", help="delete features that this job no longer needs")
    add("--dry-run", action="store_true", help="print what would be done, and its cost")
    quiet = rebuild.add_mutually_exclusive_group()
    quiet.add_argument("--quiet", action="store_true", help="print errors only")
    quiet.add_argument("--json", action="store_true", help="print events as JSON lines")

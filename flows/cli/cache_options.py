"""Declares the options of `penstock cache`. Runs nothing."""

import argparse

from flows.cli.options import add_caption_options
from flows.options.model import STORE_HELP
from flows.options.rebuild import RebuildConfig


def add_cache_commands(cache: argparse.ArgumentParser) -> None:
    """Add the actions and options of `cache`."""
    actions = cache.add_subparsers(dest="action", metavar="ACTION", required=True)
    ls = actions.add_parser("ls", help="what is stored, by model, age and size")
    ls.add_argument("--json", action="store_true", help="print the list as JSON")
    verify = actions.add_parser("verify", help="check every byte; what is bad is set aside")
    gc = actions.add_parser("gc", help="delete what was not used for the longest time")
    gc.add_argument("--max", required=True, metavar="SIZE", help="keep so much: 200GB, 1.5TiB")
    gc.add_argument("--dry-run", action="store_true", help="say what would be deleted")
    for action in (ls, verify, gc):
        action.add_argument("--store", default="", metavar="DIR", help=STORE_HELP)
    rebuild = actions.add_parser("rebuild", help="encode what of SOURCES has no features")
    add_caption_options(rebuild, RebuildConfig)
    add = rebuild.add_argument_group("rebuild").add_argument
    add("--name", default="", metavar="N", help="tells apart jobs over the same sources")
    add("--prune", action="store_true", help="remove what this job made and needs no more")
    add("--dry-run", action="store_true", help="say what would be done and what it costs")
    quiet = rebuild.add_mutually_exclusive_group()
    quiet.add_argument("--quiet", action="store_true", help="print errors only")
    quiet.add_argument("--json", action="store_true", help="print events as JSON lines")

"""Adds the options of `penstock index` and `penstock search`; runs nothing."""

import argparse

from flows.cli.options import STORE_HELP, add_embed_options, add_vector_options
from flows.job.config import INDEX

WHERE = "\"path like '%%.mp4' and time < 60\""


def add_index_commands(index: argparse.ArgumentParser) -> None:
    """Add the actions and options of `index`."""
    actions = index.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="embed SOURCES and index them; again: what is new")
    add_embed_options(build)
    build.set_defaults(out=INDEX)
    add = actions.add_parser("add", help="embed SOURCES with the index's model and append them")
    add.add_argument("sources", nargs="*", metavar="SOURCES", help="as of `index build`")
    _add_index(add)
    add_vector_options(add)
    remove = actions.add_parser("remove", help="remove rows by file, folder or key")
    remove.add_argument("names", nargs="*", metavar="NAMES", help="files, folders or keys")
    remove.add_argument("--gone", action="store_true", help="those whose files are gone")
    _add_index(remove)
    compact = actions.add_parser("compact", help="drop removed rows, merge shards, measure anew")
    verify = actions.add_parser("verify", help="check every byte, and say what is damaged")
    stats = actions.add_parser("stats", help="rows, bytes, recall")
    for action in (compact, verify, stats):
        _add_index(action)
    stats.add_argument("--json", action="store_true", help="print them as JSON")


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `search`."""
    add = parser.add_argument
    add("what", metavar="TEXT|IMAGE", help="words, or a picture's file")
    _add_index(parser)
    add("--top", type=int, default=10, metavar="K", help="how many are told [%(default)s]")
    add(
        "--not",
        dest="without",
        action="append",
        default=[],
        metavar="TEXT",
        help="leave out what is nearer to this; more than once if need be",
    )
    add("--where", default="", metavar="EXPR", help=f"condition on the rows: {WHERE}")
    add("--moments", action="store_true", help="join frames of a video that stay near")
    add = parser.add_argument_group("outputs").add_argument
    add("--json", action="store_true", help="print hits as JSON lines")
    add("--html", default="", metavar="FILE", help="a page of small pictures, in one file")
    add("--copy", default="", metavar="DIR", help="copy what is found, with search.jsonl, into DIR")
    add = parser.add_argument_group("model and store").add_argument
    add("--model", default="", metavar="M", help="[the one that the index was made with]")
    add("--store", default="", metavar="DIR", help=STORE_HELP)
    add("--memory", metavar="SIZE", help="a stage takes at most so much: 8GiB [what is free]")
    add("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", default=INDEX, metavar="DIR", help="[%(default)s]")

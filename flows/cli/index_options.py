"""Declares the options of `penstock index` and `penstock search`."""

import argparse

from flows.cli.derived import add_options
from flows.cli.vector_options import add_vector_options
from flows.options.headings import MODEL
from flows.options.search import SearchPlace, SearchQuery
from flows.options.vectors import INDEX, IndexConfig

OF_INDEX = ("sources", "model", "revision", "out", "precision")
"""Fields that `index add` takes from the index, or declares itself."""


def add_index_commands(index: argparse.ArgumentParser) -> None:
    """Add the actions and options of `index`."""
    actions = index.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="embed and index SOURCES; repeat to add new files")
    add_vector_options(build, IndexConfig)
    add = actions.add_parser("add", help="embed SOURCES with the index's model and append them")
    add.add_argument("sources", nargs="*", metavar="SOURCES", help="as for `index build`")
    _add_index(add)
    add_vector_options(add, IndexConfig, without=OF_INDEX)
    remove = actions.add_parser("remove", help="remove rows by file, folder or key")
    remove.add_argument("names", nargs="*", metavar="NAMES", help="files, folders or keys")
    remove.add_argument("--gone", action="store_true", help="rows whose files are gone")
    _add_index(remove)
    compact = actions.add_parser("compact", help="drop removed rows, merge shards, measure recall")
    verify = actions.add_parser("verify", help="check every byte; list damaged files")
    stats = actions.add_parser("stats", help="print rows, bytes and recall")
    for action in (compact, verify, stats):
        _add_index(action)
    stats.add_argument("--json", action="store_true", help="print them as JSON")


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `search`."""
    _add_index(parser)
    add_options(parser, SearchQuery)
    add = parser.add_argument_group("outputs").add_argument
    add("--json", action="store_true", help="print hits as JSON lines")
    add("--html", metavar="FILE", help="write one HTML page of thumbnails")
    add("--copy", metavar="DIR", help="copy found files and search.jsonl into DIR")
    add_options(parser, SearchPlace, MODEL)


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--index", default=INDEX, metavar="DIR", help="folder of the index [%(default)s]"
    )

"""Implements `penstock index build|add|remove|compact|verify|stats`, and prints the result."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from artifacts.disk.paths import folder_named
from artifacts.errors import UsageError
from artifacts.packages import require_extra
from artifacts.wording import counted
from flows.commands.plan.plan_command import show
from flows.commands.shared.arguments import config_of
from flows.commands.shared.exit_report import print_result
from flows.commands.shared.options import add_index_option, add_vector_options
from flows.core.console.display import READING, Display
from flows.core.console.lines import print_lines, size
from flows.core.options.vectors import IndexConfig
from flows.core.pipelines import EMBED

NAMED = 10
"""Number of missing files that are printed; `--json` prints all."""


def index_command(given: argparse.Namespace) -> int:
    require_extra("search", "an index")
    return ACTIONS[given.action](given)


def build(given: argparse.Namespace) -> int:
    """Embed and append new media, and list files that are gone."""
    return _fill(given, config_of(given, IndexConfig), whole=True)


def add(given: argparse.Namespace) -> int:
    """Embed and append new media with the model of the index. Do not look for files that are
    gone."""
    from artifacts.index.manifest import read_manifest
    from flows.commands.search.query import with_maker_of

    folder = _folder(given)
    maker = read_manifest(folder).maker
    config = config_of(given, IndexConfig, model=maker.model, out=str(folder))
    return _fill(given, with_maker_of(config, maker), whole=False)


def _fill(given: argparse.Namespace, config: IndexConfig, *, whole: bool) -> int:
    if given.dry_run:
        return show(config, EMBED, as_json=given.json)
    with closing(Display(quiet=given.quiet, as_json=given.json)) as display:
        display.doing(READING)
        from flows.commands.search.build import fill_index

        result = fill_index(config, display, look_for_vanished=whole)
    if print_result(given, result, display):
        for path in result.vanished[:NAMED]:
            print_lines(f"gone: {path}", to=sys.stderr)
        if result.vanished:
            print_lines(
                f"{counted(len(result.vanished), 'file')} of the index gone; "
                f"`penstock index remove --gone --index {result.folder}` removes their rows",
                to=sys.stderr,
            )
        command = shlex.join(["penstock", "search", "a red ball", "--index", str(result.folder)])
        print_lines(f"{result.line()}; search it with `{command}`")
    return result.exit_code


def remove(given: argparse.Namespace) -> int:
    """Remove the rows of the named files, all or none."""
    from artifacts.index.gone_files import GoneFiles, rows_gone
    from artifacts.index.manifest import RUN
    from artifacts.index.named_rows import rows_named
    from artifacts.index.writing import writing
    from flows.core.job.away import mounts_in

    if bool(given.names) == given.gone:
        raise UsageError(
            "nothing to remove" if given.names == [] else "NAMES and --gone exclude each other",
            hint="Name files, folders or keys, or give --gone",
        )
    gone = GoneFiles(mounts_in(_folder(given) / RUN))
    with writing(_folder(given)) as writer:
        snapshot = writer.snapshot()
        rows = rows_gone(snapshot, gone) if given.gone else rows_named(snapshot, given.names)
        count = writer.remove(rows)
        left = writer.manifest.live_rows
    print_lines(*gone.notes(_folder(given)), to=sys.stderr)
    print_lines(
        f"{counted(count, 'row')} removed, {left:,} left; `penstock index compact` frees space"
    )
    return 0


def compact(given: argparse.Namespace) -> int:
    """Rewrite the index without removed rows, and measure its recall."""
    from artifacts.index.upkeep import measure
    from artifacts.index.writing import compact as rewrite
    from artifacts.index.writing import writing

    with writing(_folder(given)) as writer:
        done = rewrite(writer)
        measure(writer)
        rows = writer.manifest.live_rows
    print_lines(
        f"{counted(rows, 'row')} in {counted(done.shards, 'shard')} (of {done.shards_before}); "
        f"{counted(done.rows_dropped, 'removed row')} dropped, {size(max(done.bytes_freed, 0))} "
        "freed"
    )
    return 0


def verify(given: argparse.Namespace) -> int:
    """Check every byte. Exit with 1 if something is damaged, so that nightly checks notice."""
    from artifacts.index.manifest import read_manifest
    from artifacts.index.verify import verify_index

    folder, bad = _folder(given), 0
    for damage in verify_index(folder):
        bad += 1
        print_lines(f"damaged: {damage.line()}")
    files = len(list(read_manifest(folder).files()))
    print_lines(f"{counted(files - bad, 'file')} good, {bad} damaged in {folder}")
    return 1 if bad else 0


def print_stats(given: argparse.Namespace) -> int:
    """Print the size of the index and its recall."""
    from artifacts.index.stats import stats_of

    stats = stats_of(_folder(given))
    if given.json:
        print(json.dumps(stats, indent=1))
        return 0
    print_lines(
        f"{counted(stats['rows'], 'row')} of {stats['width']} values, {size(stats['bytes'])}"
    )
    print_lines(f"model {stats['model']} in {stats['precision']}")
    print_lines(
        f"{counted(stats['removed'], 'removed row')}, {counted(stats['shards'], 'shard')} "
        f"({stats['small_shards']} small)"
    )
    for query_kind in ("pictures", "texts"):
        print_lines(f"{query_kind:10s}{_search_method(stats['measured'].get(query_kind))}")
    return 0


def _search_method(measured: dict[str, float] | None) -> str:
    if measured is None:
        return "exact search: not measured yet"
    if not measured["queries"]:
        return "exact search: few rows"
    recall = f"recall@10 {measured['recall']:.3f} in {measured['queries']} searches"
    if not measured["candidates"]:
        return f"exact search: by bits, {recall}"
    return f"search by bits, {measured['candidates']:,} compared exactly: {recall}"


def _folder(given: argparse.Namespace) -> Path:
    return folder_named(given.index, "index")


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "build": build,
    "add": add,
    "remove": remove,
    "compact": compact,
    "verify": verify,
    "stats": print_stats,
}


OF_INDEX = ("sources", "model", "revision", "out", "precision")
"""Fields that `index add` takes from the index, or declares itself."""


def add_index(index: argparse.ArgumentParser) -> None:
    actions = index.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="embed and index SOURCES; repeat to add new files")
    add_vector_options(build, IndexConfig)
    add = actions.add_parser("add", help="embed SOURCES with the index's model and append them")
    add.add_argument("sources", nargs="*", metavar="SOURCES", help="as for `index build`")
    add_index_option(add)
    add_vector_options(add, IndexConfig, without=OF_INDEX)
    remove = actions.add_parser("remove", help="remove rows by file, folder or key")
    remove.add_argument("names", nargs="*", metavar="NAMES", help="files, folders or keys")
    remove.add_argument("--gone", action="store_true", help="rows whose files are gone")
    add_index_option(remove)
    compact = actions.add_parser("compact", help="drop removed rows, merge shards, measure recall")
    verify = actions.add_parser("verify", help="check every byte; list damaged files")
    stats = actions.add_parser("stats", help="print rows, bytes and recall")
    for action in (compact, verify, stats):
        add_index_option(action)
    stats.add_argument("--json", action="store_true", help="print them as JSON")

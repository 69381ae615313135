"""Implements `penstock index build|add|remove|compact|verify|stats`, and prints the result."""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.paths import folder_named
from artifacts.words import counted
from flows.cli.last_words import print_result
from flows.cli.options import config_of
from flows.cli.plan_command import show
from flows.console.display import READING, Display
from flows.console.lines import print_lines
from flows.console.units import size
from flows.options.vectors import IndexConfig
from flows.pipelines import EMBED

NAMED = 10
"""Files that are gone and are named; `--json` names all."""


def index_command(given: argparse.Namespace) -> int:
    """Run the action, and return the exit code of the contract. Raises PenstockError."""
    return ACTIONS[given.action](given)


def build(given: argparse.Namespace) -> int:
    """Embed and append what is new, and say what is gone."""
    return _fill(given, config_of(given, IndexConfig), folder_named(given.out, "out"), whole=True)


def add(given: argparse.Namespace) -> int:
    """Do the same with the model of the index, and leave what is gone alone."""
    from artifacts.index.manifest import read_manifest
    from flows.search.maker import as_made

    folder = _folder(given)
    maker = read_manifest(folder).maker
    config = as_made(config_of(given, IndexConfig, model=maker.model), maker)
    return _fill(given, config, folder, whole=False)


def _fill(given: argparse.Namespace, config: IndexConfig, folder: Path, *, whole: bool) -> int:
    if given.dry_run:
        return show(config, EMBED, as_json=given.json)
    with closing(Display(quiet=given.quiet, as_json=given.json)) as display:
        display.doing(READING)
        from flows.search.build import fill_index
        from flows.search.texts import TEXT_HALF

        result = fill_index(config, folder, display, TEXT_HALF, look_for_vanished=whole)
    if print_result(given, result, display):
        for path in result.vanished[:NAMED]:
            print_lines(f"gone: {path}", to=sys.stderr)
        if result.vanished:
            print_lines(
                f"{counted(len(result.vanished), 'file')} of the index gone; "
                f"`penstock index remove --gone --index {folder}` removes their rows",
                to=sys.stderr,
            )
        print_lines(result.line())
    return result.exit_code


def remove(given: argparse.Namespace) -> int:
    """Remove the rows of what is named, all or nothing."""
    from artifacts.index.naming import rows_gone, rows_named
    from artifacts.index.writing import writing

    if bool(given.names) == given.gone:
        raise UsageError(
            "nothing to remove is named" if given.names == [] else "NAMES and --gone are given",
            hint="Name files, folders or keys, or give --gone",
        )
    with writing(_folder(given)) as writer:
        snapshot = writer.snapshot()
        found = rows_gone(snapshot) if given.gone else rows_named(snapshot, given.names)
        count = writer.remove(found)
        left = writer.manifest.live_rows
    print_lines(
        f"{counted(count, 'row')} removed, {left:,} left; `penstock index compact` frees space"
    )
    return 0


def compact(given: argparse.Namespace) -> int:
    """Write the index anew without removed rows, and measure it."""
    from artifacts.index.compacting import compact as rewrite
    from artifacts.index.measuring import measure
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
    """Check every byte; exit 1 when something is damaged, so that a nightly check is noticed."""
    from artifacts.index.manifest import read_manifest
    from artifacts.index.verifying import verify_index

    folder, bad = _folder(given), 0
    for damage in verify_index(folder):
        bad += 1
        print_lines(f"damaged: {damage.line()}")
    files = len(list(read_manifest(folder).files()))
    print_lines(f"{counted(files - bad, 'file')} good, {bad} damaged in {folder}")
    return 1 if bad else 0


def stats(given: argparse.Namespace) -> int:
    """Print what the index holds and how well it finds."""
    from artifacts.index.verifying import stats_of

    told = stats_of(_folder(given))
    if given.json:
        print(json.dumps(told, indent=1))
        return 0
    print_lines(f"{counted(told['rows'], 'row')} of {told['width']} numbers, {size(told['bytes'])}")
    print_lines(f"model {told['model']} in {told['precision']}")
    print_lines(
        f"{counted(told['removed'], 'removed row')}, {counted(told['shards'], 'shard')} "
        f"({told['small_shards']} small)"
    )
    for sort in ("pictures", "texts"):
        print_lines(f"{sort:10s}{_way(told['measured'].get(sort))}")
    return 0


def _way(found: dict[str, float] | None) -> str:
    if found is None:
        return "searched exactly: not measured yet"
    if not found["queries"]:
        return "searched exactly: there are few rows"
    said = f"recall@10 {found['recall']:.3f} in {found['queries']} searches"
    if not found["candidates"]:
        return f"searched exactly: by bits, {said}"
    return f"searched by bits, {found['candidates']:,} compared exactly: {said}"


def _folder(given: argparse.Namespace) -> Path:
    return folder_named(given.index, "index")


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "build": build,
    "add": add,
    "remove": remove,
    "compact": compact,
    "verify": verify,
    "stats": stats,
}

"""Implements `penstock cache ls|verify|gc|clear|pack|rebuild`, which maintain the store."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from itertools import groupby

from artifacts.errors import UsageError
from artifacts.option_texts import parse_size
from artifacts.records.packs import half_written_in, sizes_in, verify
from artifacts.records.store import Store, check_format, open_store
from artifacts.wording import counted
from flows.commands.cache.clean import (
    Collection,
    Holding,
    clear,
    collect,
    holdings,
    refuse_clearing,
    sampling_text,
)
from flows.commands.cache.pack import pack_store
from flows.commands.cache.rebuild import RebuildOptions, rebuild
from flows.commands.shared.arguments import config_of
from flows.commands.shared.exit_report import print_failed
from flows.commands.shared.options import add_caption_options, add_print_options
from flows.core.console.display import Display
from flows.core.console.lines import duration, is_terminal, print_lines, size, table_lines
from flows.core.options.commands import RebuildConfig
from flows.core.options.store import STORE_HELP, default_store
from flows.core.pipelines import STAGES

OF_MODELS = frozenset(stage.writes for stage in STAGES.values() if stage.part)
"""Record kinds made by a model part, in some precision."""
NAMELESS = {True: "unknown model", False: "without a model"}
KEPT_NOTE = "Corrections stay, and so do the outputs and rounds of learning in folders of runs"
COLUMNS = ("kind", "in", "packs", "size", "last used", "cut as")


def cache_command(given: argparse.Namespace) -> int:
    return ACTIONS[given.action](given)


def _opened(given: argparse.Namespace) -> Store:
    """Open the store. Raises UsageError for one of another format."""
    store = open_store(given.store or default_store())
    check_format(store)
    return store


def list_store(given: argparse.Namespace) -> int:
    """Print the contents of the store by model, most recently used first."""
    store = _opened(given)
    stored = dict(store.stats())
    in_order = sorted(holdings(store, stored), key=lambda h: (not h.settings, model_of(h)))
    if given.json:
        print(json.dumps([holding.to_json() for holding in in_order], indent=1))
        return 0
    for name, of_model in groupby(in_order, model_of):
        print_lines(
            name, *table_lines(COLUMNS, map(row_of, of_model), right=("packs", "size"), indent=2)
        )
    total = size(sum(sizes_in(store, stored).values()))
    print_lines(f"{total} in {store.url}, {size(store.free_bytes())} free")
    dead, writing = half_written_in(store)
    if left := sum(dead.values()):
        print_lines(f"{size(left)} more, half-written by killed runs: the next run deletes it")
    print_lines(*writing_lines(writing))
    return 0


def model_of(holding: Holding) -> str:
    """Return the display name of the model that made a holding."""
    name, commit = (holding.settings.get(key, "") for key in ("model", "commit"))
    return f"{name}@{commit[:7]}" if commit else name or NAMELESS[holding.kind in OF_MODELS]


def row_of(holding: Holding) -> tuple[str, ...]:
    settings = holding.settings
    return (
        holding.kind,
        settings.get("precision", "") if holding.kind in OF_MODELS else "",
        str(holding.packs),
        size(holding.bytes),
        f"{duration(max(0.0, time.time() - holding.used))} ago",
        sampling_text(settings["sampling"]) if settings else "",
    )


def verify_store(given: argparse.Namespace) -> int:
    """Check every byte. Exit with 1 if a pack was quarantined, so that nightly checks notice."""
    store = _opened(given)
    good = bad = 0
    for name, fine in verify(store):
        good, bad = good + fine, bad + (not fine)
        if not fine:
            print_lines(f"damaged, quarantined: {name}")
    print_lines(f"{counted(good, 'pack')} good, {bad} quarantined in {store.url}")
    if bad:
        print_lines("The next run of the same commands recomputes them")
    return 1 if bad else 0


def collect_store(given: argparse.Namespace) -> int:
    """Shrink the store to a size. Exit with 1 if more must stay."""
    limit = parse_size(given.max, "--max")
    store = _opened(given)
    result = collect(store, limit, dry_run=given.dry_run)
    print_lines(*lines_of(result, store.url, dry_run=given.dry_run))
    return 0 if result.after <= limit else 1


def clear_store(given: argparse.Namespace) -> int:
    """Delete all records of a store of any format, after asking once. Exit with 1 if declined."""
    store = open_store(given.store or default_store())
    refuse_clearing(store)
    if not given.yes:
        if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
            raise UsageError("`penstock cache clear` asks at a terminal", hint="Add --yes")
        print_lines(f"All records in {store.url} will be deleted. {KEPT_NOTE}.")
        try:
            answer = input("Delete them? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            print_lines("nothing was deleted")
            return 1
    objects, taken = clear(store)
    print_lines(f"deleted {counted(objects, 'object')}, {size(taken)} in {store.url}")
    return 0


def lines_of(result: Collection, place: str, *, dry_run: bool) -> list[str]:
    """Return lines about the deleted packs, and about what prevents more."""
    would = "would delete" if dry_run else "deleted"
    what = ", ".join(f"{count} {kind}" for kind, count in sorted(result.packs.items()))
    lines = [f"{would} {size(result.bytes)}{f' ({what})' if what else ''}"]
    lines += [f"in use by {job}" for job in result.jobs]
    held = f", {size(result.held)} of it in use" if result.held else ""
    lines.append(f"{size(result.after)} of at most {size(result.limit)}{held}")
    lines += writing_lines(result.writing)
    if result.after > result.limit and result.held:
        lines.append("Run it again when those jobs are done")
    elif result.after > result.limit:
        what = "settings, results of trials, logs, corrections and copies of GGUF files in use"
        lines.append(f"{place} keeps {size(result.after)} of {what}")
    return lines


def writing_lines(writing: int) -> list[str]:
    """Return a line about the bytes that are half-written now, if there are any."""
    more = "a job of another machine may have left it: then it goes an hour after its last write"
    return [f"{size(writing)} more, half-written by a running job ({more})"] if writing else []


def pack_features(given: argparse.Namespace) -> int:
    """Copy stored features into 8 bits."""
    store = _opened(given)
    copied = pack_store(store, replace=given.replace, announce=print_lines)
    print_lines(f"{counted(copied, 'record')} copied in {store.url}")
    return 0


def rebuild_features(given: argparse.Namespace) -> int:
    """Encode media without stored features, or with --dry-run list them."""
    display = Display(quiet=given.quiet, as_json=given.json)
    options = RebuildOptions(name=given.name, dry_run=given.dry_run)
    result = rebuild(config_of(given, RebuildConfig), options, display)
    if given.json:
        print(json.dumps({"event": "rebuild", **result.to_json()}))
        return result.exit_code
    for failure in result.failures:
        if not display.has_failed(failure.media_path):
            print_failed(failure)
    if given.dry_run:
        print_lines(*result.plan_lines())
    if given.dry_run or not given.quiet:
        print_lines(result.line())
    return result.exit_code


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "ls": list_store,
    "verify": verify_store,
    "gc": collect_store,
    "clear": clear_store,
    "pack": pack_features,
    "rebuild": rebuild_features,
}


def add_cache(cache: argparse.ArgumentParser) -> None:
    actions = cache.add_subparsers(dest="action", metavar="ACTION", required=True)
    ls = actions.add_parser("ls", help="list contents by model, age and size")
    ls.add_argument("--json", action="store_true", help="print the list as JSON")
    verify = actions.add_parser("verify", help="check every byte; quarantine damaged packs")
    gc = actions.add_parser("gc", help="delete the least recently used packs")
    gc.add_argument("--max", required=True, metavar="SIZE", help="target size: 200GB, 1.5TiB")
    gc.add_argument("--dry-run", action="store_true", help="print what would be deleted")
    clear = actions.add_parser("clear", help="delete all records, of any format")
    clear.add_argument("--yes", action="store_true", help="do not ask")
    pack = actions.add_parser("pack", help="copy features into half their bytes, without a model")
    pack.add_argument("--replace", action="store_true", help="then delete the originals")
    for action in (ls, verify, gc, clear, pack):
        action.add_argument("--store", default="", metavar="DIR", help=STORE_HELP)
    rebuild = actions.add_parser("rebuild", help="encode SOURCES without stored features")
    add_caption_options(rebuild, RebuildConfig)
    add = rebuild.add_argument_group("rebuild").add_argument
    add("--name", default="", metavar="N", help="name of the job, if several share its sources")
    add("--dry-run", action="store_true", help="print what would be done, and its cost")
    add_print_options(rebuild)

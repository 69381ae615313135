"""Refuses to replace files that have the name of an output but that no run wrote."""

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.owned_folders import refuse_foreign
from artifacts.regular_files import open_regular
from artifacts.shards import DATASET, INDEX
from artifacts.subtitles import WRITERS
from artifacts.tables import TABLES
from artifacts.trainers import TRAINERS
from flows.options.commands import RunOptions
from flows.options.formats import COCO, COCO_FILE
from flows.options.text import OutputOptions, PromptOptions
from flows.results.clips import CLIPS
from flows.results.run_record import RUN_RECORD
from flows.results.sifted.names import output_names
from flows.results.vectors import ARRAY, ROWS

HEAD_BYTES = 4 << 10
SHARDS = "[0-9]" * 6 + ".tar"
SHARD = re.compile(rb"\A[A-Za-z0-9_-]+-[0-9a-f]{12}-\d{5,}\.")
"""First bytes of a shard: the name of a sample. A shard of somebody else may lie in the folder of a
run, which deletes shards that it does not need."""
PAGE = re.compile(rb"<title>Penstock report</title>")
SEARCH_PAGE = re.compile(rb"<title>Penstock search: ")
SEARCH, HIT = "search.jsonl", re.compile(rb'\A\{"rank": ')
"""Search hits, next to the copies of their files, and how one begins."""
FAILURES, FAILURE = "failures.jsonl", re.compile(rb'\A\{"media_path": ')
"""The same of failures. A run that finds nothing to read writes them, and owns no folder."""

NAMES = {
    "caption": ("captions.jsonl",),
    "label": ("labels.jsonl", "label_spans.jsonl", "label_report.json"),
    "embed": (ARRAY, ROWS),
    "sift": output_names(TABLES),
}
"""Command → files that each run of it writes, besides those of all commands."""


def refuse_replacing(
    folder: Path, config: RunOptions, command: str, own: Collection[str]
) -> frozenset[str]:
    """Refuse a run that would replace files which are in none of `own`, the files and folders that
    earlier runs wrote. Return those and its own. Raises UsageError, EnvironmentFault."""
    outputs = {*own, *(WRITERS.keys() & OutputOptions.of(config).format)}
    for name in _names(folder, config, command):
        path, (top, *_) = folder / name, name.split("/")
        if os.path.isdir(path):
            raise EnvironmentFault(
                f"{path} cannot be written: it is a folder", hint="Move that folder away"
            )
        if top not in own or path.suffix == ".tar":
            head = FAILURE if name == FAILURES else SHARD if path.suffix == ".tar" else None
            _refuse_other(path, head, "give another --out")
        outputs.add(top)
    return frozenset(outputs)


def refuse_replacing_page(path: Path) -> None:
    """Refuse to replace anything but a report with a report. Raises UsageError."""
    _refuse_other(path, PAGE, "name another file with --to")


def refuse_replacing_found(page: Path | None, folder: Path | None) -> None:
    """Refuse to replace anything but a search page with a search page, and to copy hits into
    a folder that holds other files. Raises UsageError."""
    if page:
        _refuse_other(page, SEARCH_PAGE, "name another file with --html")
    if folder:
        refuse_foreign(folder, (), (SEARCH,))
        _refuse_other(folder / SEARCH, HIT, "give another --copy")


def _refuse_other(path: Path, head: re.Pattern[bytes] | None, alternative: str) -> None:
    """Refuse to replace a file that is not empty and that does not begin with `head`, or a link
    that leads nowhere. Raises UsageError."""
    if os.path.isfile(path):
        with contextlib.suppress(OSError), open_regular(path) as file:
            begin = file.read(HEAD_BYTES)
            if not begin or (head and head.search(begin)):
                return
    elif not os.path.islink(path) or os.path.exists(path):  # or the run reports the problem
        return
    raise UsageError(
        f"{path} exists, and penstock did not write it",
        hint=f"Move it away, or {alternative}",
    )


def _names(folder: Path, config: RunOptions, command: str) -> Iterator[str]:
    """Yield the names that a run may write or delete in its folder."""
    forms = OutputOptions.of(config).format
    yield from (RUN_RECORD, FAILURES, "media.jsonl", *NAMES[command])
    if command in ("caption", "label"):
        yield from (f"{command}s.{form}" for form in TABLES if form in forms)
    if command == "label" and COCO in forms:
        yield COCO_FILE
    if command == "caption":
        yield from ("summaries.jsonl",) if PromptOptions.of(config).summary else ()
        if any(name in forms or (folder / name).exists() for name in TRAINERS):
            yield f"{CLIPS}/{INDEX}"
        if DATASET in forms:
            yield f"{DATASET}/{INDEX}"
            yield from (f"{DATASET}/{path.name}" for path in (folder / DATASET).glob(SHARDS))

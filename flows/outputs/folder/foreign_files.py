"""Refuses to replace files that have the name of an output but that no run wrote."""

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from artifacts.disk.faults import disk_faults
from artifacts.disk.files import OURS, is_hidden, refuse_foreign
from artifacts.disk.names import numbered
from artifacts.disk.regular_files import irreplaceable_kind, open_regular
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.texts.captions import WRITERS
from artifacts.texts.shards import DATASET, INDEX
from artifacts.texts.tables import TABLES
from artifacts.texts.trainers import TRAINERS
from flows.core.media.generated_files import GeneratedFiles, digest_at
from flows.core.media.media_file import Selection
from flows.core.options.commands import RunOptions
from flows.core.options.formats import (
    ANSWERS,
    ARRAY,
    CAPTIONS,
    COCO,
    COCO_FILE,
    MEDIA,
    QUESTIONS_FILE,
    ROWS,
)
from flows.outputs.clips import CLIPS
from flows.outputs.record.run_record import RUN_RECORD

MARKS_FILE, CHUNKS_FILE = "marks.jsonl", "chunk_marks.jsonl"
KEPT_FILE, LEFT_OUT_FILE = "kept.jsonl", "left_out.jsonl"


def output_names(formats: Iterable[str]) -> list[str]:
    """Return the names of the files that a run writes."""
    forms = ["jsonl", *(form for form in TABLES if form in formats)]
    files = (MARKS_FILE, CHUNKS_FILE, KEPT_FILE, LEFT_OUT_FILE)
    return [file.replace("jsonl", form) for file in files for form in forms]


HEAD_BYTES = 4 << 10
SHARDS = "[0-9]" * 6 + ".tar"
SHARD = re.compile(rb"\A[A-Za-z0-9_-]+-[0-9a-f]{12}-\d{5,}\.")
"""First bytes of a shard: the name of a sample. A shard of somebody else may lie in the folder of a
run, which deletes shards that it does not need."""
PAGE = re.compile(rb"<title>Penstock report</title>")
TRACK = re.compile(rb"\AWEBVTT\b")
SEARCH_PAGE = re.compile(rb"<title>Penstock search: ")
SEARCH, HIT = "search.jsonl", re.compile(rb'\A\{"rank": ')
"""Search hits, next to the copies of their files, and how one begins."""
FAILURES, FAILURE = "failures.jsonl", re.compile(rb'\A\{"media_path": ')
"""The same of failures. A run that finds nothing to read writes them, and owns no folder."""

NAMES = {
    "ask": (ANSWERS, QUESTIONS_FILE, "answers.csv", "answers.parquet", KEPT_FILE, LEFT_OUT_FILE),
    "caption": (CAPTIONS,),
    "label": ("labels.jsonl", "label_spans.jsonl", "label_report.json"),
    "embed": (ARRAY, ROWS),
    "sift": output_names(TABLES),
}
"""Command → files that each run of it writes, besides those of all commands."""


NOT_ROWS = (RUN_RECORD, FAILURES, MEDIA, "label_report.json", ARRAY, ROWS)
"""Files that nobody edits, and that a run replaces."""


def refuse_replacing(
    folder: Path, config: RunOptions, command: str, own: Collection[str]
) -> frozenset[str]:
    """Refuse a run that would replace files which are in none of `own`, the files and folders that
    earlier runs wrote. Return those and its own. Raises UsageError, EnvironmentFault."""
    outputs = {*own, *(WRITERS.keys() & config.groups.outputs.format)}
    for name in _data_sets(config, own):
        outputs.add(name)
        if not os.path.lexists(folder / name / OURS) and (
            medium := _medium_in(folder / name, config)
        ):
            raise UsageError(
                f"{folder / name} is where the run would write, and holds media that penstock did "
                f"not write ({medium})",
                hint="Give another --out, or move that folder",
            )
    for name in _names(folder, config, command):
        path, (top, *_) = folder / name, name.split("/")
        if os.path.isdir(path):
            raise EnvironmentFault(
                f"{path} cannot be written: it is a folder", hint="Move that folder away"
            )
        _refuse_kept(path, "give another --out")
        if top not in own or path.suffix == ".tar":
            head = FAILURE if name == FAILURES else SHARD if path.suffix == ".tar" else None
            _refuse_other(path, head, "give another --out")
        outputs.add(top)
    return frozenset(outputs)


def set_edited_aside(
    folder: Path, config: RunOptions, command: str, own: GeneratedFiles, digests: Collection[str]
) -> Iterator[str]:
    """Give the files of rows that a person edited another name, because the run replaces them.
    Yield a note about each. `digests` are those that `captions.jsonl` may have. Raises
    EnvironmentFault."""
    requested = getattr(config, "format", ())
    others = [f".{form}" for form in TABLES if form not in requested]
    for name in _names(folder, config, command):
        path = folder / name
        is_written = name not in NOT_ROWS and "/" not in name and path.suffix not in others
        if not is_written or not os.path.isfile(path) or not path.stat().st_size:
            continue
        digest = digest_at(path)
        if not digest or own.has(name, digest) or (name == CAPTIONS and digest in digests):
            continue  # it holds nothing that no run wrote
        names = map(path.with_name, numbered(f"{path.stem}.edited", path.suffix))
        kept = next(candidate for candidate in names if not os.path.lexists(candidate))
        with disk_faults(folder):
            os.rename(path, kept)
        yield f"{path} was changed since a run wrote it: what it held is in {kept.name}"


def refuse_replacing_page(path: Path) -> None:
    """Refuse to replace anything but a report with a report. Raises UsageError."""
    _refuse_other(path, PAGE, "name another file with --to")


def refuse_replacing_found(
    page: Path | None, folder: Path | None, track: Path | None = None
) -> None:
    """Refuse to replace anything but a search page with a search page, or but a WebVTT track with
    one, and to copy hits into a folder that holds other files. Raises UsageError."""
    if track:
        _refuse_other(track, TRACK, "name another file with --vtt")
    if page:
        _refuse_other(page, SEARCH_PAGE, "name another file with --html")
    if folder:
        refuse_foreign(folder, (), (SEARCH,))
        _refuse_other(folder / SEARCH, HIT, "give another --copy")


def _refuse_other(path: Path, head: re.Pattern[bytes] | None, alternative: str) -> None:
    """Refuse to replace a file that is not empty and that does not begin with `head`, a link that
    leads nowhere, or what `irreplaceable_kind` names. Raises UsageError."""
    _refuse_kept(path, alternative)
    if os.path.isfile(path):
        with contextlib.suppress(OSError), open_regular(path) as file:
            begin = file.read(HEAD_BYTES)
            if not begin or (head and head.search(begin)):
                return
    elif not os.path.islink(path) or os.path.exists(path):  # or the run reports the problem
        return
    raise UsageError(
        f"{path} exists, and penstock did not write it", hint=f"Move it away, or {alternative}"
    )


def _refuse_kept(path: Path, alternative: str) -> None:
    if kept := irreplaceable_kind(path):
        raise UsageError(f"{path} is {kept}, not a file", hint=f"Move it away, or {alternative}")


def _data_sets(config: RunOptions, own: Collection[str]) -> Iterator[str]:
    """Yield the folders that a run may link media into, or cut clips into. Later runs do not read
    the media of such a folder."""
    names = [name for name in TRAINERS if name in {*own, *config.groups.outputs.format}]
    yield from names
    if any("video" in TRAINERS[name].folders for name in names):
        yield CLIPS


def _medium_in(folder: Path, config: RunOptions) -> str:
    """Return the name of a medium that a run on the folder would read, or an empty text."""
    reads = [Selection(recursive=True, extensions=suffixes) for suffixes in ((), config.extensions)]
    for at, folders, names in os.walk(folder):
        folders[:] = (name for name in folders if not is_hidden(name))
        shown = (name for name in names if not is_hidden(name))
        if medium := next((name for name in shown if any(r.takes(name) for r in reads)), ""):
            return os.path.relpath(os.path.join(at, medium), folder)
    return ""


def _names(folder: Path, config: RunOptions, command: str) -> Iterator[str]:
    """Yield the names that a run may write or delete in its folder."""
    forms = config.groups.outputs.format
    yield from (RUN_RECORD, FAILURES, MEDIA, *NAMES[command])
    if command in ("caption", "label"):
        yield from (f"{command}s.{form}" for form in TABLES if form in forms)
    if command == "label" and COCO in forms:
        yield COCO_FILE
    if command == "caption":
        yield from ("summaries.jsonl",) if config.groups.prompts.summary else ()
        if any(name in forms or (folder / name).exists() for name in TRAINERS):
            yield f"{CLIPS}/{INDEX}"
        if DATASET in forms:
            yield f"{DATASET}/{INDEX}"
            yield from (f"{DATASET}/{path.name}" for path in (folder / DATASET).glob(SHARDS))

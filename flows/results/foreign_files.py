"""Refuses to replace files that have the name of an output but that no run wrote.

An output is recognized by its first bytes. This also covers files of earlier versions, of other
stores and of killed runs, and needs no stored state.
"""

import csv
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.owned_folders import refuse_foreign
from artifacts.regular_files import open_regular
from artifacts.shards import DATASET, INDEX
from artifacts.tables import TABLES
from artifacts.trainers import TRAINERS
from flows.options.commands import RunOptions
from flows.options.formats import COCO, COCO_FILE
from flows.options.text import OutputOptions, PromptOptions
from flows.pipelines import EMBED, LABEL, SIFT, Pipeline
from flows.results.clips import CLIPS
from flows.results.run_record import RUN_RECORD
from flows.results.sifted.names import output_names
from flows.results.vectors import ARRAY, ROWS

LINE_BYTES = 64 << 20
"""Maximum bytes read of a line, or of a whole JSON file."""
HEAD_BYTES = 4 << 10
SHARDS = "[0-9]" * 6 + ".tar"
SAMPLE_NAME = re.compile(r"[A-Za-z0-9_-]+-[0-9a-f]{12}-\d{5,}\.")
"""Start of the file name of a WebDataset sample."""
COCO_ENDS = b'{"categories": [', b"\n]}\n"
"""First and last bytes of a COCO label file."""
PAGE = b"<title>Penstock report</title>"
SEARCH_PAGE = b"<title>Penstock search: "
SEARCH = "search.jsonl"
"""Search hits, next to the copies of their files."""
FIELDS: dict[str, tuple[str, ...]] = {
    RUN_RECORD: ("state", "pid", "host"),
    "captions.jsonl": ("media_path", "source", "start", "end", "caption"),
    "media.jsonl": ("media_path", "source", "kind", "url"),
    "failures.jsonl": ("media_path", "source", "stage", "error"),
    "summaries.jsonl": ("media_path", "source", "summary"),
    "captions.csv": ("media_path", "source", "start", "end"),
    "captions.parquet": ("media_path", "source", "start", "end"),
    "labels.jsonl": ("media_path", "source", "time", "labels"),
    "label_spans.jsonl": ("media_path", "source", "start", "end", "labels"),
    "label_report.json": ("pictures", "labelled", "labels_digest"),
    "labels.csv": ("media_path", "source", "time", "labels"),
    "labels.parquet": ("media_path", "source", "time", "labels"),
    ROWS: ("media_path", "source", "time"),
    SEARCH: ("rank", "score", "media_path", "path"),
    **dict.fromkeys(output_names(TABLES), ("media_path", "source")),
    f"{DATASET}/{INDEX}": ("shards",),
    f"{CLIPS}/{INDEX}": ("clips",),
}
"""Output → its first fields."""


def refuse_replacing(folder: Path, config: RunOptions, pipeline: Pipeline | None = None) -> None:
    """Refuse a run whose outputs would replace files that Penstock did not write. `pipeline` is
    None for captions. Raises UsageError, EnvironmentFault."""
    others = [folder / name for name in _names(folder, config, pipeline) if _is_other(folder, name)]
    known = bool(others) and any(_is_own(folder / name, name) for name in FIELDS)
    for path in others:
        if path.is_dir():
            raise EnvironmentFault(
                f"{path} cannot be written: it is a folder", hint="Move that folder away"
            )
        if not (known and _holds_nothing(path)):
            _refuse(path, "give another --out")


def refuse_replacing_page(path: Path) -> None:
    """Refuse to replace anything but a report with a report. Raises UsageError."""
    if path.is_file() and path.stat().st_size and PAGE not in _head(path):
        _refuse(path, "name another file with --to")


def refuse_replacing_found(page: Path | None, folder: Path | None) -> None:
    """Refuse to replace anything but a search page with a search page, and to copy hits into
    a folder that holds other files. Raises UsageError."""
    if page and page.is_file() and page.stat().st_size and SEARCH_PAGE not in _head(page):
        _refuse(page, "name another file with --html")
    if folder:
        refuse_foreign(folder, (), (SEARCH,))
        if _is_other(folder, SEARCH):
            _refuse(folder / SEARCH, "give another --copy")


def _refuse(path: Path, alternative: str) -> None:
    raise UsageError(
        f"{path} exists, and penstock did not write it",
        hint=f"Move it away, or {alternative}",
    )


def _names(folder: Path, config: RunOptions, pipeline: Pipeline | None) -> Iterator[str]:
    """Yield the names that a run may write or delete in its folder."""
    forms = OutputOptions.of(config).format
    yield from (RUN_RECORD, "failures.jsonl", "media.jsonl")
    if pipeline is EMBED:
        yield from (ARRAY, ROWS)
    elif pipeline is SIFT:
        yield from output_names(TABLES)
    elif pipeline is LABEL:
        yield from ("labels.jsonl", "label_spans.jsonl", "label_report.json")
        yield from (f"labels.{form}" for form in TABLES if form in forms)
        if COCO in forms:
            yield COCO_FILE
    else:
        yield "captions.jsonl"
        yield from ("summaries.jsonl",) if PromptOptions.of(config).summary else ()
        yield from (f"captions.{form}" for form in TABLES if form in forms)
        if any(name in forms or (folder / name).exists() for name in TRAINERS):
            yield f"{CLIPS}/{INDEX}"
        if DATASET in forms:
            yield f"{DATASET}/{INDEX}"
            yield from (f"{DATASET}/{path.name}" for path in (folder / DATASET).glob(SHARDS))


def _is_other(folder: Path, name: str) -> bool:
    """Return whether the file with the name of an output is none. An empty file does not count."""
    path = folder / name
    try:
        if path.is_symlink() and not path.exists():  # or to itself
            return True
        empty = not (path.is_dir() or path.stat().st_size)
    except OSError:  # missing, or the run reports the problem
        return False
    return not (empty or _is_own(path, name))


def _holds_nothing(path: Path) -> bool:
    """Return whether replacing a path loses nothing: it is a FIFO or another special file, or
    a run record that cannot be parsed."""
    if path.name != RUN_RECORD:
        return not path.is_file()
    try:
        _first_keys(path)
    except (OSError, ValueError, RecursionError):
        return True
    return False


def _is_own(path: Path, name: str) -> bool:
    """Return whether a file has the format of this output."""
    try:
        if not path.is_file():
            return False
        if name == ARRAY:
            return _is_own_array(path)
        if name == COCO_FILE:
            return _is_own_coco(path)
        if path.suffix == ".tar":
            with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                first = tar.next()
                return first is not None and bool(SAMPLE_NAME.match(first.name))
        fields = FIELDS[name]
        return READERS[path.suffix](path)[: len(fields)] == fields
    except (OSError, ValueError, RecursionError, csv.Error, tarfile.TarError):
        return False


def _is_own_array(path: Path) -> bool:
    """Return whether a run wrote an array of vectors. The array does not say so: the table next to
    it does, or the record of a run that was killed before it wrote the table."""
    table, record = path.with_name(ROWS), path.with_name(RUN_RECORD)
    if _is_own(table, ROWS):
        return True
    return _is_own(record, RUN_RECORD) and ARRAY in json.dumps(_json(record).get("outputs"))


def _is_own_coco(path: Path) -> bool:
    first, last = COCO_ENDS
    with open_regular(path) as file:
        begins = file.read(len(first)) == first
        file.seek(-len(last), 2)
        return begins and file.read() == last


def _head(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(HEAD_BYTES)


def _json(path: Path, *, line: bool = False) -> dict[str, Any]:
    """Return the object in a file, or in its first line. Raises OSError, ValueError,
    RecursionError."""
    with open_regular(path) as file:
        value = json.loads(file.readline(LINE_BYTES) if line else file.read(LINE_BYTES))
    return value if isinstance(value, dict) else {}


def _first_keys(path: Path) -> tuple[str, ...]:
    return tuple(_json(path))


def _header(path: Path) -> tuple[str, ...]:
    with open_regular(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="")
        rows = itertools.islice(csv.reader(iter([text.readline(HEAD_BYTES)])), 1)
        return tuple(next(rows, ()))


def _columns(path: Path) -> tuple[str, ...]:
    from pyarrow.parquet import read_schema

    return tuple(read_schema(path).names)


READERS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    ".json": _first_keys,
    ".jsonl": lambda path: tuple(_json(path, line=True)),
    ".csv": _header,
    ".parquet": _columns,
}
"""Suffix → reader of the first field names of such a file."""

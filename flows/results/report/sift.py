"""Gathers the contents of the report of a sift run: values of marks, groups and thumbnails."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from artifacts.json_shapes import read_jsonl
from artifacts.regular_files import open_regular
from artifacts.remote.addresses import is_address
from flows.results.marker import MEDIA
from flows.results.report.media import MEDIA_ENTRY, RUN_AGAIN
from flows.results.sifted.marks import MARKS, TEXTS
from flows.results.sifted.names import LEFT_OUT_FILE, MARKS_FILE
from flows.results.thumbnails import data_address
from flows.results.trust import belief_in

MOST_FILES = 20_000
"""Most files whose values are on the page; of more, a sample evenly over all."""
GROUPS, MEMBERS = 40, 6
"""Most groups that are shown, and most members of each."""
ENDS = 6
"""Files with the lowest and with the highest value of a mark that are shown."""
SIDE = 160
"""Pixels of the longer side of a thumbnail."""
HIGH_FALLS_OUT = frozenset(("clipped", "black", "black_seconds", "frozen", "frozen_seconds"))
"""Marks whose high values fall out, besides faults, letterbox and flags. Other marks lose their low
values."""
HIGH_FALLS_OUT |= {"letterbox", "bilevel", "faults", "blurred", "exact", "duplicate", "similar"}
NUMBERS = {"group": "duplicate", "similar_group": "similar"}
"""Marks that only name a group, and the flags of its copies."""


def sift_facts(out: Path, record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the data of the page about the sift run in `out`."""
    total, rows = _rows(out / MARKS_FILE)
    left = _lines(out / LEFT_OUT_FILE)
    names = [n for n in (rows[0] if rows else ()) if n not in (*TEXTS, *NUMBERS)]
    marks = [_mark(n, [row[n] for row in rows]) for n in names]
    marks = [mark for mark in marks if any(value is not None for value in mark["values"])]
    groups = [each for number in NUMBERS for each in _groups(rows, number)]
    shown = {at for group in groups for at in group["members"]}
    shown |= {at for mark in marks for at in _ends(mark["values"])}
    failed = record["media"]["failed"]
    counts = {"files": record["media"]["total"], "marked": total, "left out": len(left)}
    return {
        "name": name,
        "state": record["state"],
        "totals": [(n, f"{count:,}") for n, count in {**counts, "failed": failed}.items()],
        "marked": total,
        "files": [row["media_path"] for row in rows],
        "marks": marks,
        "groups": groups,
        "thumbs": _thumbs(out, rows, sorted(shown)),
        "left": [(row["media_path"], row["why"]) for row in left[:MOST_FILES]],
        "failures": [(each["media_path"], each["message"]) for each in record["failures"]],
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with open_regular(path) as file:
        return [json.loads(line) for line in file]


def _rows(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of rows of the table, and those of the page."""
    if not path.exists():
        return 0, []
    with open_regular(path) as file:
        total = sum(1 for _ in file)
        file.seek(0)
        step = -(-total // MOST_FILES) or 1
        return total, [json.loads(line) for line in islice(file, 0, None, step)]


def _mark(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    known = MARKS.get(name)
    return {
        "name": name,
        "text": known.text if known else "score of a head",
        "high": name in HIGH_FALLS_OUT,
        "values": values,
    }


def _groups(rows: Sequence[Mapping[str, Any]], number: str) -> list[dict[str, Any]]:
    """Return the groups of copies, each with its best member first."""
    flag = NUMBERS[number]
    found: dict[int, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        if row[number] is not None:
            found[row[number]].append(at)
    every = [sorted(members, key=lambda at: rows[at][flag]) for members in found.values()]
    return [
        {"kind": flag, "size": len(members), "members": members[:MEMBERS]}
        for members in sorted(every, key=len, reverse=True)[:GROUPS]
    ]


def _ends(values: Sequence[float | None]) -> list[int]:
    known = sorted((v, at) for at, v in enumerate(values) if v is not None)
    return [at for _, at in (*known[:ENDS], *known[-ENDS:])]


def _thumbs(out: Path, rows: Sequence[Mapping[str, Any]], shown: Sequence[int]) -> dict[int, str]:
    """Return the thumbnails of these rows. An address is requested only if a folder of this user
    vouches for it."""
    entries = read_jsonl(out / MEDIA, MEDIA_ENTRY, RUN_AGAIN) if belief_in(out).is_own else []
    vouched = {entry.get("address") for entry in entries}
    return {
        at: _thumb(row) if not is_address(str(row["path"])) or row["path"] in vouched else ""
        for at, row in ((at, rows[at]) for at in shown)
    }


def _thumb(row: Mapping[str, Any]) -> str:
    middle = None if row["kind"] == "image" else (row["seconds"] or 0.0) / 2
    return data_address(row["path"], middle, SIDE)

"""Lists each medium of a run with its captions, read from the run's JSON lines. Opens no media
file.
"""

import itertools
import operator
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from artifacts.captions import Failure
from artifacts.shapes import OptionalField, count, number, read_jsonl, text
from artifacts.words import counted
from flows.media.media_files import IMAGE_SUFFIXES, writable

FILE = "file://"
AGAIN = "Run the same `penstock caption` again, which writes it anew"
NAME = {"media_path": text, "source": text}
PLACE = {**NAME, "kind": text, "url": text, "captions": count, "address": OptionalField(text)}
CAPTION = {
    **NAME,
    "start": number,
    "end": number,
    "caption": text,
    "prompt": OptionalField(text),
    "tokens": OptionalField(count),
    "ended": OptionalField(text),
    "name": OptionalField(text),
    "review": OptionalField(text),
    "warnings": OptionalField([text]),
}
FAILURE = dict.fromkeys(Failure.__slots__, OptionalField(text))


def captioned_media(out: Path, folder: Path) -> list[dict[str, Any]]:
    """Return the media of a run into `out`, in source order, as a page in `folder` needs them. Each
    has `name`, `kind`, `url` relative to the folder (None: not known), `gone`, `prompt` and
    `captions`, each of them (start, end, text, tokens, whether it was cut). Raises
    EnvironmentFault."""
    return [
        _medium(place, rows, folder)
        for place, rows in beside(
            read_jsonl(out / "media.jsonl", PLACE, AGAIN),
            read_jsonl(out / "captions.jsonl", CAPTION, AGAIN),
        )
    ]


def failed_media(out: Path) -> list[dict[str, Any]]:
    """Return what could not be captioned, as `failures.jsonl` has it. Raises EnvironmentFault."""
    rows = read_jsonl(out / "failures.jsonl", FAILURE, AGAIN)
    return [{**dict.fromkeys(Failure.__slots__, ""), **row} for row in rows]


def _name(row: dict[str, Any]) -> tuple[str, str]:
    return row["source"], row["media_path"]


def beside(
    places: list[dict[str, Any]], lines: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield each medium's place with its lines, which are captions or labels."""
    counts = [place["captions"] for place in places]
    named = itertools.chain.from_iterable([_name(p)] * p["captions"] for p in places)
    if sum(counts) == len(lines) and all(map(operator.eq, named, map(_name, lines))):
        rows = iter(lines)
        for place, count in zip(places, counts, strict=True):
            yield place, list(itertools.islice(rows, count))
        return
    # An older version's run, which wrote no places, or one that is writing them at this moment.
    known = {_name(place): place for place in places}
    for name, group in itertools.groupby(lines, _name):
        rows_of = list(group)
        yield known.get(name) or _guess(*name, image=_is_still(rows_of)), rows_of


def _guess(source: str, media_path: str, *, image: bool) -> dict[str, Any]:
    """Guess where a file of a run without places lies, seen from the folder of this command."""
    folder = Path(os.path.expanduser(source))
    tries = (folder / media_path, folder, folder.parent / media_path)
    found = next((str(t) for t in tries if t.name == Path(media_path).name and t.is_file()), "")
    url = FILE + quote(os.fsencode(os.path.abspath(found))) if found else ""
    return {
        "media_path": media_path,
        "source": source,
        "kind": "image" if image else "video",
        "url": url,
    }


def _is_still(rows: Iterable[dict[str, Any]]) -> bool:
    return all(
        not (row.get("end") or row.get("time"))
        and Path(row["media_path"]).suffix.lower() in IMAGE_SUFFIXES
        for row in rows
    )


def path_of(place: dict[str, Any]) -> str:
    """Return where a medium lies; empty where that is not known."""
    return os.fsdecode(unquote_to_bytes(place["url"].removeprefix(FILE)))


def shown_medium(place: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the page says of a medium at a place; nothing was said of it yet."""
    path = path_of(place)
    url = quote(os.fsencode(os.path.relpath(path, folder))) if path else None
    return {
        "name": place["media_path"],
        "kind": place["kind"],
        "path": place.get("address") or writable(path) or place["source"],
        "url": url,
        "gone": not path or not os.path.isfile(path),
        "prompt": "",
        "warnings": [],
        "captions": [],
    }


def _named(row: dict[str, Any], text: str) -> str:
    """Return a text with the name of the prompt that it belongs to, where there are several."""
    return f"{row['name']}: {text}" if row.get("name") else text


def _cut(row: dict[str, Any]) -> bool:
    return row.get("ended") == "length" and not row.get("review")


def _medium(place: dict[str, Any], rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    warnings = Counter(text for row in rows for text in row.get("warnings", ()))
    if cut := sum(map(_cut, rows)):
        warnings[f"{counted(cut, 'caption')} cut: --max-new-tokens lets them end"] = 1
    return {
        **shown_medium(place, folder),
        "prompt": " · ".join(dict.fromkeys(_named(row, row.get("prompt", "")) for row in rows)),
        "warnings": list(warnings),
        "captions": [
            [row["start"], row["end"], _named(row, row["caption"]), row.get("tokens", 0), _cut(row)]
            for row in rows
        ],
    }

"""Reads training captions. Opens no media.

Accepted are a run's captions with user corrections (`captions.jsonl`, `.csv`, `.parquet`), Hugging
Face datasets (`file_name` and `text`), and media files with `.txt` files next to them. Corrections
in other folders and hand-written texts replace captions.
"""

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.corrections import StoredEdits
from artifacts.edits import ACCEPTED, EDITS, REJECTED, FixedText, keys_of, read_edits
from artifacts.errors import UsageError
from artifacts.json_shapes import BYTES, parse
from artifacts.keys import DIGESTS, ContentDigests, content_key
from artifacts.plurals import counted
from artifacts.regular_files import link_out, read_bytes, read_text, user_text
from artifacts.signing import proof_by
from artifacts.store import Store
from flows.media.example import Example, contents_in
from flows.media.generated_files import is_blank
from flows.media.handwritten import (
    HandwrittenTexts,
    TextRecords,
    TextsIn,
    split_by_chunk,
    text_paths,
)
from flows.media.media_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, kind_of
from flows.media.source_lists import LIST_SUFFIXES
from stages.models.hub.transfer import Announce

Row = Mapping[str, Any]


def with_corrections(
    rows: Sequence[tuple[int, Row]], path: Path, store: Store
) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a run with corrections that users made in other folders. Corrections in the
    same folder are already in the rows. Raises EnvironmentFault."""
    stored = StoredEdits(store.local)()
    own = read_edits(path.parent, proof_by(store.url)).now if stored else {}
    fixed = _fixed_text(path.parent) if stored else FixedText()
    for at, row in rows:
        given = row.get("original") or row.get("caption")
        if not (stored and isinstance(given, str) and isinstance(row.get("features"), str)):
            yield at, row
            continue
        before, caption, after = fixed.parts(given)
        prompt, name = str(row.get("prompt") or ""), str(row.get("name") or "")
        keys = keys_of(row["features"], name, prompt, caption)
        key = next((key for key in keys if key in own or key in stored), "")
        edit = None if key in own else stored.get(key)
        if edit is None:
            yield at, row
            continue
        text = caption if edit.caption is None else edit.caption
        original = "" if edit.caption is None else given
        person = {"original": original, "review": edit.review}
        yield at, {**row, "caption": before + text + after, **person}


def _fixed_text(folder: Path) -> FixedText:
    """Return the text that a run put around its captions, as its record states."""
    try:
        record = parse(read_text(folder / "run.json", BYTES))
        return FixedText.of(record["plan"]["words"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return FixedText()  # no record, or one without such texts


def with_handwritten_texts(
    examples: Sequence[Example],
    rows: Sequence[tuple[int, Row]],
    path: Path,
    store: Store,
    announce: Announce,
) -> list[Example]:
    """Return examples of a run with the texts that users wrote for their media. `announce` is
    called with their number."""
    texts = _Texts(path.parent, dict(rows), store)
    found = [texts.of(each) if each.features else each for each in examples]
    replaced = sum(one is not other for one, other in zip(found, examples, strict=True))
    if replaced:
        announce(f"{counted(replaced, 'caption')} of {len(found):,} are hand-written texts (.txt)")
    for note in texts.handwritten.notes():
        announce(note)
    return found


class _Texts:
    """The hand-written texts of one run's media."""

    def __init__(self, out: Path, rows: Mapping[int, Row], store: Store) -> None:
        self._rows = rows
        self.handwritten = HandwrittenTexts(store, out)
        self._digests = ContentDigests(store.local / DIGESTS)
        self._lines: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        """(medium, prompt) → its lines in the data."""
        self._first: dict[str, str] = {}
        """Medium → name of its first prompt."""
        self._in_out = TextsIn(out)
        for at, row in rows.items():
            self._lines[_item(row)].append(at)
            self._first.setdefault(_item(row)[0], str(row.get("name") or ""))

    def of(self, example: Example) -> Example:
        """Return an example with the hand-written text of its medium, if there is one."""
        row = self._rows[example.line]
        places = [place for place in self._places(example.path, row) if place.is_file()]
        try:
            digest = self._digests.of(example.path) if places else ""
        except OSError:
            return example
        about = content_key(digest, kind_of(example.path.name))
        if (found := self.handwritten.of(places, about, str(example.path))) is None:
            return example
        text, lines = found[1], self._lines[_item(row)]
        if " ".join(text.split()) in example.prompt:
            return example  # the text was part of the prompt, by `{tags}`
        captions = split_by_chunk(text, len(lines)) or [text.strip()] * len(lines)
        caption = captions[lines.index(example.line)]
        return (
            replace(example, caption=caption) if caption not in ("", example.caption) else example
        )

    def _places(self, path: Path, row: Row) -> Iterator[Path]:
        item, name = _item(row)[0], str(row.get("name") or "")
        inside = PurePosixPath(str(row.get("media_path") or ""))
        names = [name, *([""] if name and self._first[item] == name else [])]
        if inside.name and not inside.is_absolute() and ".." not in inside.parts:
            yield from self._in_out.of(Path(inside), name)
        for each in names:
            yield from text_paths(path, each)


def _item(row: Row) -> tuple[str, str]:
    medium = f"{row.get('source')}\n{row.get('media_path')}"
    return medium, f"{row.get('name')}\n{row.get('prompt')}"


MAX_BYTES = 1 << 30
"""Largest caption file, in bytes."""
PATHS = ("path", "file_name", "image", "video")
"""Fields that name a file, relative to the data's folder."""
TEXTS = ("caption", "text")
"""Fields that hold the caption."""
SUFFIXES = (".jsonl", ".csv", ".parquet")


def examples_in(
    data: str, announce: Announce = lambda _: None, store: Store | None = None
) -> list[Example]:
    """Return the captions in the data, one per item. `announce` is called with a note about
    captions that reviews exclude. Corrections in other folders of a `store` and hand-written texts
    replace captions. Raises UsageError."""
    path = Path(data).expanduser()
    if path.is_dir():
        found = list(_media_with_texts(path, store, announce))
    elif path.suffix.lower() in SUFFIXES and path.is_file():
        rows = [*enumerate(ROWS[path.suffix.lower()](path), 1)]
        if store is not None:
            rows = [*with_corrections(rows, path, store)]
        found = _reviewed(rows, path, store, announce)
    else:
        raise UsageError(
            f"{path}: no captions found",
            hint="Give a captions.jsonl, .csv or .parquet, or a folder of media with .txt files",
        )
    if not found:
        raise UsageError(f"{path} holds no captions", hint="Add captions, or check the path")
    _check(found, path)
    return list({example.item: example for example in reversed(found)}.values())[::-1]


def _reviewed(
    rows: list[tuple[int, Mapping[str, Any]]], path: Path, store: Store | None, announce: Announce
) -> list[Example]:
    """Return the captions that users accepted, corrected or wrote by hand. If none was accepted or
    corrected, return all that were not rejected. Raises UsageError if corrections are not yet in
    the data."""
    edits = path.with_name(EDITS)
    has_edits = edits.exists() and edits.stat().st_size > 0
    if path.suffix == ".jsonl" and has_edits and _modified_ns(edits) > _modified_ns(path):
        raise UsageError(
            f"{path.name} lacks corrections from {edits}",
            hint="Press Write files in `penstock review`, or run the same `penstock caption` again",
        )
    left = [(at, row) for at, row in rows if row.get("review") != REJECTED]
    if rows and not left:
        raise UsageError(f"{path}: every caption was rejected", hint="Accept or correct some")
    contents = contents_in(path.with_name("media.jsonl"))
    found = made = [_example(row, at, path, contents) for at, row in left]
    if store is not None:
        found = with_handwritten_texts(made, rows, path, store, announce)
    # A corrected caption has the model's as `original`.
    accepted = [row.get("review") == ACCEPTED or bool(row.get("original")) for _, row in left]
    if any(accepted):
        by_hand = [one is not other for one, other in zip(found, made, strict=True)]
        kept = zip(found, accepted, by_hand, strict=True)
        found = [each for each, is_accepted, is_by_hand in kept if is_accepted or is_by_hand]
    if len(found) < len(rows):
        which = "accepted" if any(accepted) else "not rejected"
        announce(f"training on {len(found):,} of {counted(len(rows), 'caption')}: those {which}")
    return found


def _modified_ns(path: Path) -> int:
    return path.stat().st_mtime_ns


def _check(found: Sequence[Example], path: Path) -> None:
    empty = [each for each in found if not each.caption.strip()]
    if empty:
        raise UsageError(
            f"{path}: {_place(empty[0])} has no caption ({len(empty)} of {len(found)} have none)",
            hint="Write one, or remove the line",
        )
    seen: dict[tuple[Any, ...], Example] = {}
    for each in found:
        other = seen.setdefault(each.item, each)
        if other.caption != each.caption:
            raise UsageError(
                f"{path}: {_place(other)} and {_place(each)} are two captions of one item, "
                f"{each.path.name}",
                hint="Keep one, or give them different prompts",
            )


def _place(example: Example) -> str:
    return f"line {example.line}" if example.line else example.path.name


def _media_with_texts(folder: Path, store: Store | None, announce: Announce) -> Iterator[Example]:
    """Yield the media of a folder that have a text file; none that a run wrote of other content."""
    records = None if store is None else TextRecords(store)
    others: list[str] = []
    for path in sorted(folder.rglob("*")):
        text = path.with_suffix(".txt")
        known = path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
        if known and text.is_file() and not is_blank(text):
            if why := link_out(text, folder):
                raise UsageError(f"{text}: {why}", hint="Put a copy there if it is yours")
            if records is not None and records.are_other(text, path):
                others.append(text.name)
                continue
            yield Example(path=_absolute(path), caption=_text(text).strip())
    if others:
        announce(
            f"left out: {counted(len(others), 'text')} of runs about other content ({others[0]})"
        )


def _example(row: Row, at: int, data: Path, contents: Mapping[str, str]) -> Example:
    caption = next((row[name] for name in TEXTS if isinstance(row.get(name), str)), None)
    own = _own_file(row, data)
    path = own or _path(row, data)
    if caption is None or path is None:
        what = "no caption" if caption is None else "no file"
        raise UsageError(
            f"{data}: line {at} has {what}",
            hint="Each line needs caption or text, and media_path, path or file_name",
        )
    # With a media_path, start and end are times in that file. A generated file is the chunk itself.
    timed = own is None or not row.get("media_path")
    times = [row.get(name) if timed else None for name in ("start", "end")]
    try:
        start, end = (float(time) if time not in (None, "") else None for time in times)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{data}: line {at} has a start or an end that is no number",
            hint="Give seconds, or leave both out",
        ) from error
    return Example(
        path=path,
        caption=caption,
        start=start,
        end=end,
        prompt=str(row.get("prompt") or ""),
        features=str(row.get("features") or ""),
        content=contents.get(_item(row)[0], ""),
        line=at,
    )


def _own_file(row: Mapping[str, Any], data: Path) -> Path | None:
    """Return the file next to the data that a row of a Hugging Face dataset names, or None."""
    named = row.get("file_name")
    path = _absolute(data.parent / named) if isinstance(named, str) else None
    return path if path is not None and os.path.isfile(path) else None


def _path(row: Mapping[str, Any], data: Path) -> Path | None:
    """Return the file of a row: by source and path below it, as runs write it, or relative to the
    data's folder."""
    if isinstance(row.get("media_path"), str):
        source = Path(str(row.get("source") or data.parent)).expanduser()
        if source.is_file() and source.suffix.lower() not in LIST_SUFFIXES:
            return _absolute(source)
        # For a pattern, a list or an address, the name at least distinguishes the files.
        next_to_source, in_source = (
            folder / str(row["media_path"]) for folder in (source.parent, source)
        )
        return _absolute(
            next_to_source if next_to_source.is_file() and not in_source.exists() else in_source
        )
    named = next((row[name] for name in PATHS if isinstance(row.get(name), str)), None)
    return None if named is None else _absolute(data.parent / named)


def _absolute(path: Path) -> Path:
    """Return a path as the search for media names it, without `..`."""
    return Path(os.path.abspath(path))


def _text(path: Path) -> str:
    try:
        return user_text(read_bytes(path, MAX_BYTES), path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path} cannot be read ({reason})", hint="Check the file") from error


def _of_jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    for at, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UsageError(
                f"{path}: line {at} is no JSON object", hint="Write one object per line"
            )
        yield row


def _of_csv(path: Path) -> Iterator[Mapping[str, Any]]:
    # splitlines would also split at unusual line separators inside a caption.
    for row in csv.DictReader(io.StringIO(_text(path), newline="")):
        yield from _of_prompts(row)


def _of_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    from pyarrow.parquet import read_table

    try:
        for row in read_table(path).to_pylist():
            yield from _of_prompts(row)
    except (OSError, pa.ArrowException) as error:
        message = " ".join(str(error).split())[:160]
        raise UsageError(f"{path} cannot be read ({message})", hint="Write it again") from error


def _of_prompts(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a row for each caption of a chunk: tables have the named prompts side by side."""
    ending = "_prompt"
    names = [column.removesuffix(ending) for column in row if str(column).endswith(ending)]
    if not names or ("caption" not in names and any(name in row for name in TEXTS)):
        yield row
        return
    for name in names:
        caption, prompt = row.get(f"caption_{name}", row.get(name)), row[f"{name}{ending}"]
        if prompt:  # empty where this chunk has no such prompt
            yield {**row, "name": name, "prompt": prompt, "caption": caption}


ROWS = {".jsonl": _of_jsonl, ".csv": _of_csv, ".parquet": _of_parquet}
"""Suffix → function that reads the rows of a file."""


def split(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Return the training examples and the held-out examples. Chunks of one medium stay
    together."""
    import random

    paths = sorted({str(example.path) for example in examples})
    random.Random(f"{seed} held out").shuffle(paths)
    count = round(share * len(paths))
    if share and len(paths) > 1:
        count = min(max(1, count), len(paths) - 1)
    held = set(paths[:count])
    kept = [example for example in examples if str(example.path) not in held]
    if not kept:
        raise UsageError(
            f"too few captions ({len(examples)}): none is left to train on",
            hint="Give more captions, or --validate 0",
        )
    return kept, [example for example in examples if str(example.path) in held]

"""Replaces captions of a training run's data with user corrections from other folders and with
hand-written texts. Writes nothing and runs no model."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.corrections import StoredEdits
from artifacts.edits import key_of, read_edits
from artifacts.json_shapes import BYTES, parse
from artifacts.keys import ContentDigests, content_key
from artifacts.plurals import counted
from artifacts.regular_files import read_text
from artifacts.store import Store
from flows.media.example import Example
from flows.media.handwritten import HandwrittenTexts, split_by_chunk, text_paths
from flows.media.media_files import kind_of
from stages.models.hub.transfer import Announce

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _FixedText:
    """The text that a run put before and after its captions."""

    prefixes: tuple[str, ...] = ()
    suffix: str = ""

    def parts(self, caption: str) -> tuple[str, str, str]:
        """Return the text before the model's caption, the caption, and the text after it."""
        text = caption
        for head in self.prefixes:
            text = text.removeprefix(head)
        before = caption[: len(caption) - len(text)]
        text = text.removesuffix(self.suffix)
        return before, text, caption[len(before) + len(text) :]


def with_corrections(
    rows: Sequence[tuple[int, Row]], path: Path, store: Store
) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a run with corrections that users made in other folders. Corrections in the
    same folder are already in the rows. Raises EnvironmentFault."""
    stored = StoredEdits(store.local)()
    own = read_edits(path.parent).now if stored else {}
    fixed = _fixed_text(path.parent) if stored else _FixedText()
    for at, row in rows:
        given = row.get("original") or row.get("caption")
        if not (stored and isinstance(given, str) and isinstance(row.get("features"), str)):
            yield at, row
            continue
        before, caption, after = fixed.parts(given)
        prompt, name = str(row.get("prompt") or ""), str(row.get("name") or "")
        key = key_of(row["features"], name, prompt, caption)
        edit = None if key in own else stored.get(key)
        if edit is None:
            yield at, row
            continue
        text = caption if edit.caption is None else edit.caption
        original = "" if edit.caption is None else given
        person = {"original": original, "review": edit.review}
        yield at, {**row, "caption": before + text + after, **person}


def _fixed_text(folder: Path) -> _FixedText:
    """Return the text that a run put around its captions, as its record states."""
    try:
        record = parse(read_text(folder / "run.json", BYTES))
        text = record["plan"]["words"]
        trigger = f"{text['trigger']}, " if text.get("trigger") else ""
        return _FixedText(prefixes=(trigger, text.get("prefix", "")), suffix=text.get("suffix", ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return _FixedText()  # no record, or one without such texts


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
    return found


class _Texts:
    """The hand-written texts of one run's media."""

    def __init__(self, out: Path, rows: Mapping[int, Row], store: Store) -> None:
        self._out = out
        self._rows = rows
        self._texts = HandwrittenTexts(store)
        self._digests = ContentDigests(store.local / "digests.jsonl")
        self._lines: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        """(medium, prompt) → its lines in the data."""
        self._first: dict[str, str] = {}
        """Medium → name of its first prompt."""
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
        if (found := self._texts.of(places, about)) is None:
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
            yield from text_paths(self._out / inside, name)
        for each in names:
            yield from text_paths(path, each)


def _item(row: Row) -> tuple[str, str]:
    medium = f"{row.get('source')}\n{row.get('media_path')}"
    return medium, f"{row.get('name')}\n{row.get('prompt')}"

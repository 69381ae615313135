"""Replaces captions of a training run's data with user corrections from other folders and with
hand-written texts. Writes nothing and runs no model.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.corrections import StoredEdits
from artifacts.edits import key_of, read_edits
from artifacts.keys import ContentDigests, content_key
from artifacts.regular import read_text
from artifacts.shapes import BYTES, parse
from artifacts.store import Store
from artifacts.words import counted
from flows.media.example import Example
from flows.media.handwritten import HandwrittenTexts, split_by_chunk, text_paths
from flows.media.media_files import kind_of
from stages.models.hub.transfer import Announce

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Around:
    """The text that a run put before and after its captions."""

    heads: tuple[str, ...] = ()
    tail: str = ""

    def parts(self, caption: str) -> tuple[str, str, str]:
        """Return what stands before the words, the words, and what stands after them."""
        words = caption
        for head in self.heads:
            words = words.removeprefix(head)
        before = caption[: len(caption) - len(words)]
        words = words.removesuffix(self.tail)
        return before, words, caption[len(before) + len(words) :]


def with_corrections(
    rows: Sequence[tuple[int, Row]], path: Path, store: Store
) -> Iterator[tuple[int, Row]]:
    """Yield rows of a run's captions with what people did to them in other folders. What they did
    in this one is in there already. Raises EnvironmentFault."""
    stored = StoredEdits(store.local)()
    own = read_edits(path.parent).now if stored else {}
    around = _around(path.parent) if stored else _Around()
    for at, row in rows:
        given = row.get("original") or row.get("caption")
        if not (stored and isinstance(given, str) and isinstance(row.get("features"), str)):
            yield at, row
            continue
        before, said, after = around.parts(given)
        prompt, name = str(row.get("prompt") or ""), str(row.get("name") or "")
        key = key_of(row["features"], name, prompt, said)
        edit = None if key in own else stored.get(key)
        if edit is None:
            yield at, row
            continue
        words = said if edit.caption is None else edit.caption
        original = "" if edit.caption is None else given
        person = {"original": original, "review": edit.review}
        yield at, {**row, "caption": before + words + after, **person}


def _around(folder: Path) -> _Around:
    """Return what a run put around its captions, as its record says."""
    try:
        record = parse(read_text(folder / "run.json", BYTES))
        words = record["plan"]["words"]
        trigger = f"{words['trigger']}, " if words.get("trigger") else ""
        return _Around(heads=(trigger, words.get("prefix", "")), tail=words.get("suffix", ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return _Around()  # none, or one that says of nothing around them


def with_handwritten_texts(
    examples: Sequence[Example],
    rows: Sequence[tuple[int, Row]],
    path: Path,
    store: Store,
    say: Announce,
) -> list[Example]:
    """Return examples of a run with the texts that people wrote by hand for their media; `say` is
    told how many those are."""
    texts = _Texts(path.parent, dict(rows), store)
    found = [texts.of(each) if each.features else each for each in examples]
    taken = sum(one is not other for one, other in zip(found, examples, strict=True))
    if taken:
        say(f"{counted(taken, 'caption')} of {len(found):,} are texts that people wrote (.txt)")
    return found


class _Texts:
    """The hand-written texts of one run's media."""

    def __init__(self, out: Path, rows: Mapping[int, Row], store: Store) -> None:
        self._out = out
        self._rows = rows
        self._texts = HandwrittenTexts(store)
        self._digests = ContentDigests(store.local / "digests.jsonl")
        self._lines: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        """What tells a medium and a prompt from others → the lines about it."""
        self._first: dict[str, str] = {}
        """Medium → name of its first prompt."""
        for at, row in rows.items():
            self._lines[_item(row)].append(at)
            self._first.setdefault(_item(row)[0], str(row.get("name") or ""))

    def of(self, example: Example) -> Example:
        """Return an example with the text of its medium, if a person wrote one."""
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
            return example  # the model was told it, by `{tags}`
        said = split_by_chunk(text, len(lines)) or [text.strip()] * len(lines)
        words = said[lines.index(example.line)]
        return replace(example, caption=words) if words not in ("", example.caption) else example

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

"""Replaces captions of a run by what users corrected in other folders, or wrote beside media."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from artifacts.edits import FixedText, StoredEdits, keys_of, read_edits
from artifacts.keys import DIGESTS, ContentDigests, content_key
from artifacts.plurals import counted
from artifacts.signing import proof_by
from artifacts.store import Store
from flows.media.example import Example, Row, fixed_text_of, item_of
from flows.media.generated_files import HandwrittenTexts, TextsIn, split_by_chunk, text_paths
from flows.media.media_files import kind_of
from stages.models.hub.transfer import Announce


def with_corrections(
    rows: Sequence[tuple[int, Row]], path: Path, store: Store
) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a run with corrections that users made in other folders. Corrections in the
    same folder are already in the rows. Raises EnvironmentFault."""
    stored = StoredEdits(store.local)()
    own = read_edits(path.parent, proof_by(store.url)).now if stored else {}
    fixed = fixed_text_of(path.parent) if stored else FixedText()
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
            self._lines[item_of(row)].append(at)
            self._first.setdefault(item_of(row)[0], str(row.get("name") or ""))

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
        text, lines = found[1], self._lines[item_of(row)]
        if " ".join(text.split()) in example.prompt:
            return example  # the text was part of the prompt, by `{tags}`
        captions = split_by_chunk(text, len(lines)) or [text.strip()] * len(lines)
        caption = captions[lines.index(example.line)]
        return (
            example
            if caption in ("", example.caption)
            else replace(example, caption=caption, is_cut=False)
        )

    def _places(self, path: Path, row: Row) -> Iterator[Path]:
        item, name = item_of(row)[0], str(row.get("name") or "")
        inside = PurePosixPath(str(row.get("media_path") or ""))
        names = [name, *([""] if name and self._first[item] == name else [])]
        if inside.name and not inside.is_absolute() and ".." not in inside.parts:
            yield from self._in_out.of(Path(inside), name)
        for each in names:
            yield from text_paths(path, each)

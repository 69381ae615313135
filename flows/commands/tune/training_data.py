"""Reads training captions. Opens no media.

Accepted are a run's captions with user corrections (`captions.jsonl`, `.csv`, `.parquet`), Hugging
Face datasets (`file_name` and `text`), and media files with `.txt` files next to them. Corrections
in other folders and hand-written texts replace captions.

No model is to learn the text that runs put around their captions: the run that uses the model puts
it there again.
"""

import contextlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import chain, product
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.disk.files import OURS, is_hidden
from artifacts.disk.json_shapes import BYTES, text
from artifacts.disk.regular_files import link_out, read_bytes, read_text, user_text
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.keys import DIGESTS, ContentDigests, content_key
from artifacts.records.provenance import proof_by
from artifacts.records.store import Store
from artifacts.texts.affixes import FixedText
from artifacts.texts.edits import (
    ACCEPTED,
    EDITS,
    REJECTED,
    StoredEdits,
    how_to_write,
    keys_of,
    lacks_decisions,
    read_edits,
)
from artifacts.texts.shards import clip_id
from artifacts.texts.stored_answers import StoredAnswers
from artifacts.texts.tables import read_csv
from artifacts.texts.trainers import TRAINERS
from artifacts.wording import counted, first_of
from flows.core.job.away import recorded_in
from flows.core.job.plan_record import RecordedPlan
from flows.core.media.generated_files import (
    HandwrittenTexts,
    TextRecords,
    TextsIn,
    is_blank,
    split_by_chunk,
    text_paths,
)
from flows.core.media.media_file import MEDIA_SUFFIXES, kind_of
from flows.core.media.sources import LIST_SUFFIXES
from flows.core.options.formats import (
    ANSWERED,
    ANSWERS,
    MADE,
    MOST_TRACKS,
    RETIMED,
    sounding,
    timing,
)
from flows.outputs.record.run_read import load_record
from stages.models.hub.transfer import Announce
from stages.tune import TuneItem

Row = Mapping[str, Any]
Item = tuple[Path, float | None, float | None, str]
"""Path, start, end and prompt of what has one caption."""
PATHS = ("path", "file_name", "image", "video", "image_path", "video_path")
"""Fields that name a file, relative to the data's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One caption, with its medium and chunk."""

    path: Path
    caption: str
    start: float | None = None
    """Start of its chunk in seconds; None: the medium is one chunk."""
    end: float | None = None
    prompt: str = ""
    """Prompt of the caption; empty: the default one."""
    features: str = ""
    """Key of the features that it was made from; empty if unknown."""
    content: str = ""
    """Identity of the content that was captioned; empty if unknown."""
    medium: str = ""
    """Identity of the medium that its file was cut from, as far as the data state it."""
    is_cut: bool = False
    """Whether the token limit ended it, and no person wrote or accepted it."""
    line: int = 0
    """Line in the data; 0 if the caption is a file of its own."""

    @property
    def item(self) -> Item:
        return self.path, self.start, self.end, self.prompt

    @property
    def target(self) -> TuneItem:
        """Return what is trained."""
        return TuneItem(self.features, self.prompt, self.caption.strip(), self.is_cut)

    @property
    def place(self) -> str:
        """Return where its caption stands, in the data."""
        return f"line {self.line}" if self.line else self.path.name


def file_of(row: Row, folder: Path) -> Path | None:
    """Return the file of a row: by source and path below it, as runs write it, or relative to the
    `folder` of the data."""
    if isinstance(row.get("media_path"), str):
        source = Path(str(row.get("source") or folder)).expanduser()
        if source.is_file() and source.suffix.lower() not in LIST_SUFFIXES:
            return absolute(source)
        # For a pattern, a list or an address, the name at least distinguishes the files.
        beside, inside = (base / str(row["media_path"]) for base in (source.parent, source))
        return absolute(beside if beside.is_file() and not inside.exists() else inside)
    named = next((row[name] for name in PATHS if isinstance(row.get(name), str)), None)
    return None if named is None else absolute(folder / named)


def absolute(path: Path) -> Path:
    """Return a path as the search for media names it, without `..`."""
    return Path(os.path.abspath(path))


def is_cut(row: Row) -> bool:
    """Return whether the token limit ended a caption, and no person wrote or accepted it."""
    return row.get("ended") == "length" and not (row.get("review") or row.get("original"))


def item_of(row: Row) -> tuple[str, str]:
    """Return the medium of a row, by source and path, and its prompt."""
    return (
        f"{row.get('source')}\n{row.get('media_path')}",
        f"{row.get('name')}\n{row.get('prompt')}",
    )


def contents_in(path: Path) -> Mapping[str, str]:
    """Return the name of each medium of a run → the identity of the content that it read."""
    try:
        rows = [json.loads(line) for line in read_text(path, BYTES).split("\n") if line]
        # Data sets do not state the source.
        by_path = {f"{None}\n{r['media_path']}": str(r.get("content", "")) for r in rows}
        return by_path | {item_of(row)[0]: str(row.get("content", "")) for row in rows}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}  # no run wrote the data


RECORD = "run.json"
FEWEST, SHARE, TAIL = 20, 0.9, 15
"""Captions of a list in which the same words are no accident: their number, the share of them that
has the words, and the number of characters of an end."""


def run_folder(folder: Path) -> Path:
    """Return the folder of the run that wrote captions into a folder: the one above it if the
    folder is a data set of a run, or holds its clips."""
    sets = [
        candidate
        for candidate in (folder, folder.parent)
        if candidate.name in TRAINERS or os.path.lexists(candidate / OURS)
    ]
    return sets[0].parent if sets and not os.path.lexists(folder / RECORD) else folder


def fixed_text_of(folder: Path) -> FixedText:
    """Return the text that a run put around the captions in a folder, as its record states."""
    recorded = recorded_in(run_folder(folder), RecordedPlan)
    return recorded.plan.words.text if recorded else FixedText()


class AroundRows:
    """The text that a run put around the captions in its rows, answers about a chunk included."""

    def __init__(self, data: Path) -> None:
        self._fixed = fixed_text_of(data.parent)
        self._answers = StoredAnswers(run_folder(data.parent) / ANSWERED / ANSWERS)

    def of(self, features: str) -> FixedText:
        """Return the text around the caption of a chunk with this key of features."""
        return self._fixed.about(self._answers.of(features))


def alike_note(folder: Path, captions: Sequence[str]) -> str:
    """Return a note if nearly all captions begin or end alike, and no run in their folder states
    what it put there; else an empty text."""
    if len(captions) < FEWEST or os.path.lexists(run_folder(folder) / RECORD):
        return ""
    heads = Counter(caption[: caption.index(",") + 1] for caption in captions if "," in caption)
    tails = Counter(caption[-TAIL:] for caption in captions if len(caption) > TAIL)
    for does, counts in (("begin", heads), ("end", tails)):
        for words, count in counts.most_common(1):
            if count > SHARE * len(captions):
                return (
                    f"{count:,} of {len(captions):,} captions {does} with {words!r}, which is "
                    "trained, too: leave it out of them if a run adds it (--trigger, --prefix, "
                    "--suffix)"
                )
    return ""


def with_corrections(
    rows: Sequence[tuple[int, Row]], path: Path, store: Store
) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a run with corrections that users made in other folders. Corrections in the
    same folder are already in the rows. Raises EnvironmentFault."""
    stored = StoredEdits(store.local)()
    own = read_edits(path.parent, proof_by(store.url)).now if stored else {}
    around = AroundRows(path)
    for at, row in rows:
        given = row.get("original") or row.get("caption")
        if not (stored and isinstance(given, str) and isinstance(row.get("features"), str)):
            yield at, row
            continue
        before, caption, after = around.of(row["features"]).parts(given)
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
    updated = [texts.of(example) if example.features else example for example in examples]
    replaced = sum(one is not other for one, other in zip(updated, examples, strict=True))
    if replaced:
        announce(
            f"{counted(replaced, 'caption')} of {len(updated):,} are hand-written texts (.txt)"
        )
    for note in texts.handwritten.notes():
        announce(note)
    return updated


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
        if (handwritten := self.handwritten.of(places, about, str(example.path))) is None:
            return example
        text, lines = handwritten[1], self._lines[item_of(row)]
        if " ".join(text.split()) in example.prompt:
            return example  # the text was part of the prompt, by `{tags}`
        captions = split_by_chunk(text, len(lines)) or [text.strip()] * len(lines)
        caption = captions[lines.index(example.line)]
        is_same = caption in ("", example.caption)
        return example if is_same else replace(example, caption=caption, is_cut=False)

    def _places(self, path: Path, row: Row) -> Iterator[Path]:
        item, name = item_of(row)[0], str(row.get("name") or "")
        inside = PurePosixPath(str(row.get("media_path") or ""))
        names = [name, *([""] if name and self._first[item] == name else [])]
        if inside.name and not inside.is_absolute() and ".." not in inside.parts:
            yield from self._in_out.of(Path(inside), name)
        for prompt_name in names:
            yield from text_paths(path, prompt_name)


CUT = re.compile(r"-([0-9a-f]{12})-\d{5,}(?:-\d+)?")
"""End of a clip's name, and of a link's to a whole file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What a run recorded about a file of its data sets."""

    medium: str = ""
    """Identity of the content that the file was cut from; empty if unknown."""
    prompt: str = ""
    """Prompt of its caption; empty if unknown."""
    is_cut: bool = False
    """Whether the token limit ended that caption."""


class Origins:
    """What runs recorded about the files of their data sets."""

    def __init__(self) -> None:
        self.run_of = cache(run_folder)
        """Folder → the run that it is a data set of, or that it holds clips of; else itself."""
        self.contents = cache(lambda run: contents_in(run / "media.jsonl"))
        """Run → its media and their contents."""
        self._captions = cache(lambda run: _captions_in(run, self.contents(run)))

    def of(self, file: Path, data: Path, text: str) -> Origin:
        """Return what the run above the folder of a file, or of the `data` that name it, recorded
        about it and its text. A text that is none of the captions, as after a correction, has the
        first one's prompt."""
        names = (*CUT.findall(file.stem)[-1:], str(file))
        for folder in dict.fromkeys((file.parent, data)):
            captions = self._captions(self.run_of(folder)) if self.run_of(folder) != folder else {}
            for name in names:
                if matching := captions.get(name):
                    same = [pair for pair in matching if pair[0]["caption"].split() == text.split()]
                    row, medium = (*same, *matching)[0]
                    cut = bool(same) and is_cut(row)
                    return Origin(medium=medium, prompt=str(row.get("prompt") or ""), is_cut=cut)
        return Origin()


def _captions_in(run: Path, contents: Mapping[str, str]) -> Mapping[str, list[tuple[Row, str]]]:
    """Return the captions of a run with the contents of their media, by the digits in the names of
    clips, and by the files of the media."""
    sounds = ("", *map(sounding, range(MOST_TRACKS + 1)))
    timings = ("", *(timed + anew for timed in _timings(run) for anew in ("", RETIMED)))
    ways = {*map("".join, product(chain(*MADE.values()), timings, sounds))}
    captions: defaultdict[str, list[tuple[Row, str]]] = defaultdict(list)
    try:
        for line in filter(None, read_text(run / "captions.jsonl", BYTES).split("\n")):
            row = json.loads(line)
            content = contents.get(item_of(row)[0], "")
            names = [clip_id(way, content, row["start"], row["end"]) for way in ways if content]
            row["caption"].split()  # a text, or the file is none of a run
            for name in (*names, str(file_of(row, run))):
                captions[name].append((row, content))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}  # no captions of a run
    return captions


def _timings(run: Path) -> Iterator[str]:
    """Yield what is added for a run's clips if a trainer takes so many frames of each."""
    with contextlib.suppress(UsageError, EnvironmentFault):  # no record, or none that can be read
        if (sampling := load_record(run).plan.sampling) is not None and sampling.clip_frames:
            yield timing(sampling.clip_frames, sampling.clip_fps)


MAX_BYTES = 1 << 30
"""Largest caption file, in bytes."""
TEXTS = ("caption", "text")
"""Fields that hold the caption."""


def examples_in(
    data: str, announce: Announce = lambda _: None, store: Store | None = None
) -> list[Example]:
    """Return the captions in the data, one per item. `announce` is called with a note about
    captions that reviews exclude. Corrections in other folders of a `store` and hand-written texts
    replace captions. Raises UsageError."""
    path = Path(data).expanduser()
    if path.is_dir():
        pairs = [*_media_with_texts(path, store, announce)]
    elif path.suffix.lower() in ROWS and path.is_file():
        rows = [*enumerate(ROWS[path.suffix.lower()](path), 1)]
        if store is not None:
            rows = [*with_corrections(rows, path, store)]
        around = AroundRows(path)
        examples = _reviewed(rows, path, store, announce)
        pairs = [(example, around.of(example.features)) for example in examples]
    else:
        raise UsageError(
            f"{path}: no captions found",
            hint="Give a captions.jsonl, .csv or .parquet, or a folder of media with .txt files",
        )
    if not pairs:
        lines = path / "captions.jsonl"
        hint = f"Give {lines}" if lines.is_file() else "Add captions, or check the path"
        raise UsageError(f"{path} holds no captions{' beside media' * path.is_dir()}", hint=hint)
    examples = [replace(e, caption=fixed.parts(e.caption)[1]) for e, fixed in pairs]
    _check(examples, path)
    unknown = [example.caption for example, fixed in pairs if fixed == FixedText()]
    if note := alike_note(path if path.is_dir() else path.parent, unknown):
        announce(note)
    examples = list({example.item: example for example in reversed(examples)}.values())[::-1]
    of_set = cache(lambda folder: run_folder(folder) != folder)  # or it holds clips of one
    if bare := sum(
        not e.prompt and (of_set(e.path.parent) or of_set(path.parent)) for e in examples
    ):
        announce(
            f"the default prompt is trained for {counted(bare, 'caption')} of {len(examples):,}: "
            "they state none, and captions.jsonl and media.jsonl of their run are not above their "
            "folder (clips of one video are not held out together, either)"
        )
    if cut := sum(example.is_cut for example in examples):
        announce(
            f"{counted(cut, 'caption')} of {len(examples):,} reached the token limit: trained "
            "as far as they go, without an end"
        )
    return examples


def _reviewed(
    rows: list[tuple[int, Row]], path: Path, store: Store | None, announce: Announce
) -> list[Example]:
    """Return the captions that users accepted, corrected or wrote by hand. If none was accepted or
    corrected, return all that were not rejected. Raises UsageError if corrections are not yet in
    the data."""
    if path.suffix == ".jsonl" and lacks_decisions(path):
        raise UsageError(
            f"{path.name} lacks corrections from {path.with_name(EDITS)}",
            hint=how_to_write(path.parent),
        )
    not_rejected = [(at, row) for at, row in rows if row.get("review") != REJECTED]
    if rows and not not_rejected:
        raise UsageError(f"{path}: every caption was rejected", hint="Accept or correct some")
    origins = Origins()
    contents = origins.contents(origins.run_of(path.parent))
    examples = read_examples = [
        _example(row, at, path, contents, origins) for at, row in not_rejected
    ]
    if store is not None:
        examples = with_handwritten_texts(read_examples, rows, path, store, announce)
    # A corrected caption has the model's as `original`.
    accepted = [
        row.get("review") == ACCEPTED or bool(row.get("original")) for _, row in not_rejected
    ]
    if any(accepted):
        by_hand = [one is not other for one, other in zip(examples, read_examples, strict=True)]
        reviewed = zip(examples, accepted, by_hand, strict=True)
        examples = [e for e, is_accepted, is_by_hand in reviewed if is_accepted or is_by_hand]
    if len(examples) < len(rows):
        which = "accepted" if any(accepted) else "not rejected"
        announce(f"training on {len(examples):,} of {counted(len(rows), 'caption')}: those {which}")
    return examples


def _check(examples: Sequence[Example], path: Path) -> None:
    empty = [example for example in examples if not example.caption.strip()]
    if empty:
        raise UsageError(
            f"{path}: {empty[0].place} has no caption ({len(empty)} of {len(examples)} have none)",
            hint="Write one, or remove the line",
        )
    seen: dict[Item, Example] = {}
    for example in examples:
        other = seen.setdefault(example.item, example)
        if other.caption != example.caption:
            raise UsageError(
                f"{path}: {other.place} and {example.place} are two captions of one item, "
                f"{example.path.name}",
                hint="Keep one, or give them different prompts",
            )


def _media_with_texts(
    folder: Path, store: Store | None, announce: Announce
) -> Iterator[tuple[Example, FixedText]]:
    """Yield the media of a folder with the first text beside them, by the names that captions get,
    and with what a run put around its caption; none that a run wrote of other content."""
    records, of_folder = None if store is None else TextRecords(store), cache(fixed_text_of)
    origins, others, bare = Origins(), list[str](), list[str]()
    for path in sorted(folder.rglob("*")):
        is_medium = path.suffix.lower() in MEDIA_SUFFIXES
        texts = [t for t in text_paths(path) if is_medium and t.is_file() and not is_blank(t)]
        is_shown = is_medium and not any(map(is_hidden, path.relative_to(folder).parts))
        bare += [path.name] * (is_shown and not texts and path.is_file())
        for beside in texts:
            if why := link_out(beside, folder):
                raise UsageError(f"{beside}: {why}", hint="Put a copy there if it is yours")
            if records is not None and records.are_other(beside, path):
                others.append(beside.name)
                continue
            fixed = FixedText() if records is None else records.around(beside, path)
            if fixed == FixedText():
                fixed = of_folder(beside.parent)
            caption, file = _text(beside).strip(), absolute(path)
            about = asdict(origins.of(file, beside.parent, caption))
            yield Example(path=file, caption=caption, **about), fixed
            break
    if bare:
        announce(
            f"left out: {counted(len(bare), 'file')} with no words in a .txt ({first_of(bare)})"
        )
    if others:
        announce(
            f"left out: {counted(len(others), 'text')} of runs about other content ({others[0]})"
        )


def _example(
    row: Row, at: int, data: Path, contents: Mapping[str, str], origins: Origins
) -> Example:
    caption = next((row[name] for name in TEXTS if isinstance(row.get(name), str)), None)
    own, medium = _own_file(row, data), item_of(row)[0]
    path = own or file_of(row, data.parent)
    if caption is None or path is None:
        what = "no caption" if caption is None else "no file"
        raise UsageError(
            f"{data}: line {at} has {what}",
            hint="Each line needs caption or text, and media_path, path or file_name",
        )
    if not text(f"{caption}{row.get('prompt') or ''}"):
        what = "holds half of a surrogate pair"
        raise UsageError(f"{data}: line {at} {what}", hint="Write its text again")
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
    origin = origins.of(path, data.parent, caption)
    return Example(
        path=path,
        caption=caption,
        start=start,
        end=end,
        prompt=str(row.get("prompt") or origin.prompt),
        features=str(row.get("features") or ""),
        content="" if own else contents.get(medium, ""),
        medium=origin.medium or contents.get(medium) or ("" if timed else medium),
        is_cut=is_cut(row) or origin.is_cut,
        line=at,
    )


def _own_file(row: Row, data: Path) -> Path | None:
    """Return the file next to the data that a row of a Hugging Face dataset names, or None."""
    named = row.get("file_name")
    path = absolute(data.parent / named) if isinstance(named, str) else None
    return path if path is not None and os.path.isfile(path) else None


def _text(path: Path) -> str:
    try:
        return user_text(read_bytes(path, MAX_BYTES), path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path} cannot be read ({reason})", hint="Check the file") from error


def _of_jsonl(path: Path) -> Iterator[Row]:
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


def _of_csv(path: Path) -> Iterator[Row]:
    for _, row in read_csv(_text(path), str(path))[1]:
        yield from _of_prompts(row)


def _of_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow.parquet import read_table

    try:
        for row in read_table(path).to_pylist():
            yield from _of_prompts(row)
    except (OSError, pa.ArrowException) as error:
        message = " ".join(str(error).split())[:160]
        raise UsageError(f"{path} cannot be read ({message})", hint="Write it again") from error


def _of_prompts(row: Row) -> Iterator[Row]:
    """Yield a row for each caption of a chunk: tables have the named prompts side by side."""
    ending = "_prompt"
    names = [column.removesuffix(ending) for column in row if str(column).endswith(ending)]
    if not names or ("caption" not in names and any(name in row for name in TEXTS)):
        yield row
        return
    for name in names:
        caption, prompt = row.get(f"caption_{name}", row.get(name)), row[f"{name}{ending}"]
        if prompt:  # empty where this chunk has no such prompt
            ended = row.get(f"{name}_ended")
            yield {**row, "name": name, "prompt": prompt, "caption": caption, "ended": ended}


ROWS = {".jsonl": _of_jsonl, ".csv": _of_csv, ".parquet": _of_parquet}
"""Suffix → function that reads the rows of a file."""


def split(
    examples: Sequence[Example], share: float, seed: int, contents: Mapping[str, str]
) -> tuple[list[Example], list[Example]]:
    """Return the training examples and the held-out examples. All that is of one medium stays
    together, under whatever names it lies and in whatever clips. `contents`: path → identity of the
    content."""
    import random

    first: dict[str, str] = {}
    media = [e.medium or contents.get(str(e.path)) or str(e.path) for e in examples]
    for medium, example in zip(media, examples, strict=True):
        first[medium] = min(str(example.path), first.get(medium, str(example.path)))
    order = sorted(first, key=first.__getitem__)
    random.Random(f"{seed} held out").shuffle(order)
    count = round(share * len(order))
    if share and len(order) > 1:
        count = min(max(1, count), len(order) - 1)
    held = set(order[:count])
    training = [
        example for example, medium in zip(examples, media, strict=True) if medium not in held
    ]
    if not training:
        raise UsageError(
            f"too few captions ({len(examples)}): none is left to train on",
            hint="Give more captions, or --validate 0",
        )
    return training, [e for e, medium in zip(examples, media, strict=True) if medium in held]

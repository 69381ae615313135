"""Makes the texts beside the media of a folder the captions of a review, and writes them again.

1. Each medium with a text beside it is a row of OUT, and the text is its caption. No model runs.
2. Decisions lie in the journal of OUT. The folder stays as it is.
3. A text is written if its caption was changed, and if it holds what was read, or written, last:
   `media.jsonl` has the digests of that. What somebody else changed meanwhile is left alone.

OUT has new digests before a text is written, so that a process may be killed anywhere.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from artifacts.digests import digest_of
from artifacts.disk.files import json_text, sweep, write_text
from artifacts.disk.json_shapes import Json
from artifacts.disk.names import one_name
from artifacts.disk.regular_files import irreplaceable_kind, link_out, read_bytes, user_text
from artifacts.errors import UsageError
from artifacts.records.store import open_store, prepare_store
from artifacts.schema import values_of
from artifacts.texts.captions import Caption, Failure, json_lines, write_jsonl
from artifacts.texts.edits import REJECTED, UNTOUCHED
from artifacts.wording import counted, first_of
from flows.commands.review.captions import ReviewedCaptions
from flows.core.checkpoint.models import digests_in
from flows.core.job.media_digests import read_contents
from flows.core.media.generated_files import MAX_BYTES, text_paths
from flows.core.media.media_file import MediaFile, Selection, source_failure
from flows.core.media.output_rows import FILE, CaptionRow, MediaRow
from flows.core.media.sources import find_media
from flows.core.options.formats import CAPTIONS, MEDIA
from flows.core.options.store import default_store
from flows.outputs.folder.foreign_files import FAILURES
from flows.outputs.folder.run_lock import only_run_in
from flows.outputs.folder.trust import own_belief
from flows.outputs.marker import MARKER, Marker, own_marker, write_marker, write_proved
from flows.outputs.media_rows import media_with_captions
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.run_record import RUN_RECORD, MediaCounts

COMMAND = "review"
"""The owner of such a folder, in its marker."""
BLANK = " "
"""The original of a text without words: an empty one would stand for that of no edit."""
NAMED = 20
"""Most texts that are named which were left alone."""
EVERY = Selection(recursive=True, extensions=())
Row = tuple[MediaRow, list[CaptionRow]]


def take_in(folder: Path, out: Path) -> list[str]:
    """Make the texts of a folder rows of `out`, where the decisions on those that did not change
    stay, and return notes. Raises UsageError, EnvironmentFault."""
    store = default_store()
    _refuse(folder, out, store)
    media, failures = find_media([str(folder.absolute())], EVERY)
    with only_run_in(out, "reviewing texts in", "end that review"):
        before = {medium.path: (medium, rows) for medium, rows in media_with_captions(out)}
        texts, rows = _texts_of(media), list[Row]()
        contents, unreadable = _contents_of([*texts], store)
        failures += unreadable
        for file, content in contents.items():
            row = _row(file, content, texts[file], before.get(str(file.path)))
            rows.append(row) if isinstance(row, tuple) else failures.append(row)
        if not rows:
            raise UsageError(
                f"{folder} has no medium with a text beside it that can be read",
                hint="A text has the name of its medium: a.txt for a.png",
            )
        if not os.path.lexists(out / MARKER):
            write_marker(out, Marker(command=COMMAND, folder=str(folder.absolute()), store=store))
        _write_rows(out, rows, store)
        write_jsonl(out / FAILURES, failures)
        writer = RecordWriter(out)
        writer.record.captions, writer.record.state = len(rows), "done"
        writer.record.media = MediaCounts(total=len(rows) + len(failures), failed=len(failures))
        writer.write(force=True)
    changed = [
        medium.media_path
        for medium, (line,) in rows
        if (old := before.get(medium.path)) is not None
        and (medium.digests[0] not in old[0].digests or line.features != old[1][0].features)
    ]
    return [*_notes(len(media) - len(texts), failures, changed)]


def _refuse(folder: Path, out: Path, store: str) -> None:
    """Refuse a folder that holds a run, and an output folder that is not one of these reviews.
    Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", hint="Name a folder of media and their texts")
    if os.path.realpath(folder) == os.path.realpath(out):
        raise UsageError(f"{out} is the folder of the texts", hint="Give another --out")
    if os.path.lexists(folder / RUN_RECORD):
        hint = f"Leave out --out: penstock review {folder}"
        raise UsageError(f"{folder} is the output folder of a run", hint=hint)
    if os.path.lexists(out / MARKER):
        marker = own_marker(out, store)
        if marker is None or marker.command != COMMAND:
            owner = "another user" if marker is None else f"`penstock {marker.command}`"
            message = f"{out} is the output folder of {owner}"
            raise UsageError(message, hint="Give another --out")
    elif any(os.path.lexists(out / name) for name in (CAPTIONS, MEDIA, RUN_RECORD)):
        message = f"{out} has files of another program with the names of outputs"
        raise UsageError(message, hint="Give another --out")


def _texts_of(media: Sequence[MediaFile]) -> dict[MediaFile, Path]:
    """Return the text beside each medium that has one. One that two media share is the first's."""
    texts = dict[str, tuple[MediaFile, Path]]()
    for file in media:
        text = next((path for path in text_paths(file.path) if os.path.isfile(path)), None)
        if text is not None:
            texts.setdefault(one_name(text), (file, text))
    return dict(texts.values())


def _contents_of(
    files: Sequence[MediaFile], place: str
) -> tuple[dict[MediaFile, str], list[Failure]]:
    """Return the digest of the content of each medium, which the store knows of files that did not
    change, and what cannot be read. Raises PenstockError."""
    store = open_store(place)
    prepare_store(store)
    readable, unreadable = read_contents(files, digests_in(store), store)
    return {one.file: one.medium.digest for one in readable}, unreadable


def _row(file: MediaFile, digest: str, text: Path, before: Row | None) -> Row | Failure:
    """Return the row of a medium: the one of before if its text is as it was read or written then.
    Its key is of the contents of the medium and of the text, so that a folder may be moved."""
    try:
        content = _content(text)
        words, sha256 = user_text(content, text).strip(), hashlib.sha256(content).hexdigest()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        message = f"its text {text.name} cannot be read: {why}"
        hint = "Save it as UTF-8, in a file of its own, and open the review again"
        return source_failure(file.source, file.media_path, "text", message, hint)
    original, review = words, ""
    if before is not None and sha256 in before[0].digests:
        old = before[1][0]
        original, review = old.original or old.caption, old.review
    medium = MediaRow(
        media_path=file.media_path,
        source=file.source,
        kind=file.kind,
        url=f"{FILE}{quote(os.fsencode(file.path))}",
        captions=1,
        text=text.name,
        digests=[sha256],
    )
    caption = CaptionRow(
        media_path=file.media_path,
        source=file.source,
        start=0.0,
        end=0.0,
        caption=words,
        features=digest_of(["text", digest]),
        original=original if original != words else BLANK * (not words),
        review=review,
    )
    return medium, [caption]


def _content(text: Path) -> bytes:
    """Return the bytes of a text. Raises OSError, also for a link out of its folder."""
    if why := link_out(text, text.parent) or irreplaceable_kind(text):
        raise OSError(errno.EINVAL, why, str(text))
    return read_bytes(text, MAX_BYTES)


def _write_rows(out: Path, rows: Sequence[Row], store: str) -> None:
    """Write captions and media, with the digests of texts. Raises EnvironmentFault."""
    media = (json_text(_filled(values_of(medium))) + "\n" for medium, _ in rows)
    write_proved(out, {CAPTIONS: json_lines(map(_caption, rows)), MEDIA: media}, store)


def _filled(values: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in values.items() if value or name == "captions"}


def _caption(row: Row) -> Caption:
    (line,) = row[1]
    return Caption(
        media_path=line.media_path,
        source=line.source,
        start=line.start,
        end=line.end,
        caption=line.caption,
        model="",
        prompt="",
        precision={},
        frames=(),
        features=line.features,
        tokens=0,
        ended="stop",
        original=line.original,
        review=line.review,
    )


def _notes(bare: int, failures: Sequence[Failure], changed: Sequence[str]) -> Iterator[str]:
    if bare:
        yield f"{counted(bare, 'file')} left out, which have no text of their own"
    if failures:
        yield f"{counted(len(failures), 'text')} cannot be read: see Show, files that failed"
    if changed:
        yield (
            f"{counted(len(changed), 'text or medium')} changed since the last review, and what "
            f"was decided on what was there before does not count: {first_of(changed)}"
        )


def write_texts(captions: ReviewedCaptions) -> str:
    """Write changed captions into their texts, and return what came of it in a line. Only edits
    count that are proved to be the user's. Raises UsageError, EnvironmentFault."""
    out, edits, keys = captions.out, captions.proved_edits(), captions.folder.keys_at
    marker = own_belief(out).marker
    if marker is None or marker.command != COMMAND:
        raise UsageError(f"{out} is no review of texts", hint="Open it with --out once more")
    rows, left = [*media_with_captions(out)], list[str]()
    texts = dict[int, tuple[Path, str]]()
    for at, (medium, (line,)) in enumerate(rows):
        edit, original = edits.get(keys[at][0], UNTOUCHED), line.original or line.caption
        words = line.caption if edit.review == REJECTED else edit.caption or original.strip()
        path = Path(os.path.realpath(Path(medium.path).with_name(medium.text)))
        if words == line.caption:
            rows[at] = medium, [replace(line, review=edit.review)]
        elif (content := _unchanged(path, medium)) is None:
            left.append(_name(medium))
        else:
            texts[at] = path, words + "\n" * content.endswith(b"\n")
            coming = hashlib.sha256(texts[at][1].encode()).hexdigest()
            rows[at] = replace(medium, digests=[*medium.digests, coming]), [line]
    for folder in {out, *(path.parent for path, _ in texts.values())}:
        sweep(folder)
    _write_rows(out, rows, marker.store)
    written = 0
    try:
        for at, (path, text) in texts.items():
            if _unchanged(path, rows[at][0]) is None:
                left.append(_name(rows[at][0]))
            else:
                mode = stat.S_IMODE(path.stat().st_mode)
                write_text(path, [text])
                path.chmod(mode)
                edit = edits.get(keys[at][0], UNTOUCHED)
                rows[at] = _as_written(rows[at], text.removesuffix("\n"), edit.review)
                written += 1
    finally:  # what was written before a full disk is, too
        _write_rows(out, rows, marker.store)
    named = ", ".join(left[:NAMED]) + ", …" * (len(left) > NAMED)
    why = "because somebody changed or protected them"
    others = f"; {len(left):,} left alone, {why}: {named}" if left else ""
    return f"{counted(written, 'text')} written{others}"


def _as_written(row: Row, words: str, review: str) -> Row:
    """Return the row of a text that holds other words now."""
    medium, (line,) = row
    original = line.original or line.caption
    line = replace(line, caption=words, original=original * (words != original), review=review)
    return replace(medium, digests=medium.digests[-1:]), [line]


def _name(medium: MediaRow) -> str:
    """Return the path of a text in its folder."""
    return str(PurePosixPath(medium.media_path).with_name(medium.text))


def _unchanged(text: Path, medium: MediaRow) -> bytes | None:
    """Return the bytes of a text if it is as it was read or written last, and its owner may write
    it; None: it is not."""
    try:
        content = _content(text)
        if not text.stat().st_mode & stat.S_IWUSR:
            return None
    except (OSError, ValueError):
        return None
    return content if hashlib.sha256(content).hexdigest() in medium.digests else None

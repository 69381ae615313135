"""Reads the captions of a run's folder for a review, and checks texts that replace them."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from artifacts.records.store import local_folder, open_store
from artifacts.remote.addresses import is_address
from artifacts.remote.media_cache import is_copy
from artifacts.schema import values_of
from artifacts.texts.affixes import FixedText
from artifacts.texts.captions import one_line
from artifacts.texts.edits import CaptionChange, Edit, ReviewedRow, changes_of, keys_of
from flows.core.media.generated_files import HandwrittenTexts, text_paths
from flows.core.media.media_file import MEDIA_SUFFIXES
from flows.core.media.output_rows import CaptionRow, MediaRow
from flows.outputs.folder.trust import belief_in
from flows.outputs.media_rows import (
    PageMedium,
    failed_media,
    is_other,
    media_with_captions,
    shown_medium,
)
from flows.outputs.record.run_read import load_record

LONGEST = 1 << 16
"""Largest number of characters of a caption."""


class EditRefused(ValueError):
    """An edit that cannot be applied. The message tells the user why."""

    key = ""
    """Key of the caption whose new text is refused; empty: it is not about one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewedCaption:
    """What a review knows of a caption besides its row."""

    chunk: tuple[str, str, str]
    """Its features, its prompt's name and its prompt."""
    content: str
    """Content digest of its medium; empty: unknown."""
    medium: str
    """Identity of its medium: the content; unknown: source and path."""
    around: FixedText
    """What the run puts around it."""
    written: str
    """The caption as the files have it, with edits and what is around it."""
    unnamed_key: str
    """Its key of the time when its prompt had no name; empty: its prompt has none."""
    by_hand: bool
    """Whether a text of a person goes before it."""
    copies: int
    """Number of captions that have its key: those of files of one content."""


class FolderCaptions:
    """The captions of a run's folder as its files have them, without edits."""

    def __init__(self, out: Path, store: str, trust: bool) -> None:
        """Read the files of the last run, which may still be running. `store` and `trust` are as in
        `belief_in`. Raises EnvironmentFault."""
        self._out = out
        self.belief = belief_in(out, store, trust=trust)
        words = load_record(out).plan.words
        self.fixed, self.schema = words.text, words.schema
        entries = media_with_captions(out)
        self.places: list[str] = []
        """Path or address of each medium; empty: unknown."""
        self._entries: list[MediaRow] = []
        self.rows: dict[str, ReviewedRow] = {}
        self.captions: dict[str, ReviewedCaption] = {}
        self.keys_at: list[list[str]] = []
        """Keys of the captions of each medium."""
        url = self.belief.store if self.belief.is_own else ""
        is_here = bool(url) and local_folder(url) is not None
        self._by_hand = HandwrittenTexts(open_store(url), out) if is_here else None
        self.media = [self._medium(place, rows) for place, rows in entries]
        self.failures = [*map(values_of, failed_media(out))]

    def keys_of(self, key: str) -> tuple[str, ...]:
        """Return the keys under which a caption may have an edit: its own, and the one of the time
        when its prompt had no name."""
        caption = self.captions.get(key)
        return (key, caption.unnamed_key) if caption and caption.unnamed_key else (key,)

    def edit_keys(self) -> set[str]:
        """Return every key under which a caption may have an edit."""
        return {key for name in self.rows for key in self.keys_of(name)}

    def changes_of(self, edits: Mapping[str, Edit]) -> tuple[CaptionChange, ...]:
        """Return the changes of an action that gives these captions these edits."""
        contents = {key: content for key in edits if (content := self.captions[key].content)}
        return changes_of((self.rows[key] for key in edits), edits, contents)

    @property
    def has_texts(self) -> bool:
        """Return whether the captions are texts beside media, and not those of a run."""
        return self.belief.is_own and any(entry.text for entry in self._entries)

    def as_written(self, key: str, text: str) -> str:
        """Return words with what a run puts around the caption with this key, on one line, as
        trainers get them."""
        return one_line(self.captions[key].around.around(text))

    def place_shown(self, number: int) -> str:
        """Return the path or address of a medium; empty if it is unknown, or if other content than
        was captioned is there now."""
        if number >= len(self.places) or is_other(self._entries[number]):
            return ""
        return self.places[number]

    def replacing(self, row: ReviewedRow, text: str | None) -> str | None:
        """Return the text that replaces the model's caption; None if they are equal. Trigger,
        prefix and suffix, which a run adds, are dropped. Control characters, which pasted text may
        have, become spaces. Raises EditRefused."""
        if text is None:
            return None
        words = self.captions[row["key"]].around.parts(text)[1]
        if row["said"] in (text, words):
            return None
        words = "".join(
            " " if unicodedata.category(letter) == "Cc" and letter not in "\t\n\r" else letter
            for letter in words
        )
        if len(words) > LONGEST:
            raise EditRefused(f"a caption has at most {LONGEST:,} characters")
        if not words.strip():
            raise EditRefused("the caption is empty: reject it instead")
        if self.schema:
            from stages.decode.json_schema import follows

            if not follows(self.schema, words):
                raise EditRefused("the caption does not follow the run's JSON Schema")
        return words

    def _medium(self, place: MediaRow, lines: list[CaptionRow]) -> PageMedium[ReviewedRow]:
        # As on a page in the run's folder; the server looks up the file by its number.
        medium: PageMedium[ReviewedRow] = shown_medium(place, self._out, reads=False)
        if place.address:  # it is fetched when viewed
            medium["gone"] = ""
        path = place.path
        # A copy on another machine, or in another cache folder, is fetched again.
        has_path = not place.address or is_copy(Path(path))
        where = path if has_path else place.address
        # A folder of another person makes no request, and shows no file that is no medium.
        is_shown = not is_address(where) and Path(where).suffix.lower() in MEDIA_SUFFIXES
        self.places.append(where if self.belief.is_own or is_shown else "")
        medium["number"] = len(self.places) - 1
        self._entries.append(place)
        by_hand = None
        if self._by_hand is not None and has_path and (digest := place.content):
            places = text_paths(Path(where), lines[0].name if lines else "")
            by_hand = self._by_hand.of(places, digest, where)
        if by_hand is not None:
            medium["text"] = by_hand[0].name, by_hand[1].strip()
        rows = [self._row(line, place, by_hand is not None) for line in lines]
        medium["captions"] = rows
        self.keys_at.append([row["key"] for row in rows])
        return medium

    def _row(self, line: CaptionRow, place: MediaRow, by_hand: bool) -> ReviewedRow:
        around = self.fixed.about(line.answers)
        _, original, _ = around.parts(line.original or line.caption)
        key, *unnamed = keys_of(line.features, line.name, line.prompt, original)
        copy = self.captions.get(key)
        self.captions[key] = ReviewedCaption(
            chunk=(line.features, line.name, line.prompt),
            content=place.content or (copy.content if copy else ""),
            medium=place.content or f"{place.source}\n{place.media_path}",
            around=around,
            written=line.caption,
            unnamed_key=unnamed[0] if unnamed else "",
            by_hand=by_hand or (copy is not None and copy.by_hand),
            copies=1 + (copy.copies if copy else 0),
        )
        self.rows[key] = {
            "key": key,
            "media_path": line.media_path,
            "start": line.start,
            "end": line.end,
            "said": original,
            "name": line.name,
            "prompt": line.prompt,
            "cut": line.ended == "length",
            "warnings": line.warnings,
            "logprob": line.logprob,
            "margin": line.margin,
            "margin_at": line.margin_at,
        }
        return self.rows[key]

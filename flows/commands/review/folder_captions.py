"""Reads the captions of a run's folder for a review, and checks texts that replace them."""

import unicodedata
from collections import Counter
from pathlib import Path

from artifacts.records.store import local_folder, open_store
from artifacts.remote.addresses import is_address
from artifacts.remote.media_cache import is_copy
from artifacts.schema import values_of
from artifacts.texts.affixes import FixedText
from artifacts.texts.captions import one_line
from artifacts.texts.edits import ReviewedRow, keys_of
from flows.core.media.generated_files import HandwrittenTexts, text_paths
from flows.core.media.output_rows import CaptionRow, MediaRow
from flows.core.media.sources import MEDIA_SUFFIXES
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
        self.around: dict[str, FixedText] = {}
        """Caption key → what the run puts around it."""
        self.copies: Counter[str] = Counter()
        """Caption key → number of captions that have it: those of files of one content."""
        self.chunks: dict[str, tuple[str, str, str]] = {}
        """Caption key → its features, its prompt's name and its prompt."""
        self.content_of: dict[str, str] = {}
        """Caption key → content digest of its medium, if it is known."""
        self.medium_of: dict[str, str] = {}
        """Caption key → identity of its medium: the content; unknown: source and path."""
        self.written: dict[str, str] = {}
        """Caption key → the caption as the files have it, with edits and what is around it."""
        self.keys_at: list[list[str]] = []
        """Keys of the captions of each medium."""
        self.by_hand: set[str] = set()
        """Keys of the captions before which a text of a person goes."""
        self._unnamed: dict[str, str] = {}
        """Key of a caption whose prompt has a name → its key of the time without one."""
        url = self.belief.store if self.belief.is_own else ""
        is_here = bool(url) and local_folder(url) is not None
        self._by_hand = HandwrittenTexts(open_store(url), out) if is_here else None
        self.media = [self._medium(place, rows) for place, rows in entries]
        self.failures = [*map(values_of, failed_media(out))]

    def keys_of(self, key: str) -> tuple[str, ...]:
        """Return the keys under which a caption may have an edit: its own, and the one of the time
        when its prompt had no name."""
        return (key, *([self._unnamed[key]] if key in self._unnamed else []))

    def edit_keys(self) -> set[str]:
        """Return every key under which a caption may have an edit."""
        return {*self.rows, *self._unnamed.values()}

    @property
    def has_texts(self) -> bool:
        """Return whether the captions are texts beside media, and not those of a run."""
        return self.belief.is_own and any(entry.text for entry in self._entries)

    def as_written(self, key: str, text: str) -> str:
        """Return words with what a run puts around the caption with this key, on one line, as
        trainers get them."""
        return one_line(self.around[key].around(text))

    def place_shown(self, number: int) -> str:
        """Return the path or address of a medium; empty if it is unknown, or if other content than
        was captioned is there now."""
        if number >= len(self.places) or is_other(self._entries[number]):
            return ""
        return self.places[number]

    def replacing(self, row: ReviewedRow, given: str | None) -> str | None:
        """Return the text that replaces the model's caption; None if they are equal. Trigger,
        prefix and suffix, which a run adds, are dropped. Control characters, which pasted text may
        have, become spaces. Raises EditRefused."""
        if given is None or row["said"] in (
            given,
            given := self.around[row["key"]].parts(given)[1],
        ):
            return None
        given = "".join(
            " " if unicodedata.category(letter) == "Cc" and letter not in "\t\n\r" else letter
            for letter in given
        )
        if len(given) > LONGEST:
            raise EditRefused(f"a caption has at most {LONGEST:,} characters")
        if not given.strip():
            raise EditRefused("the caption is empty: reject it instead")
        if self.schema:
            from stages.decode.json_schema import follows

            if not follows(self.schema, given):
                raise EditRefused("the caption does not follow the run's JSON Schema")
        return given

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
        medium["captions"] = rows = [self._row(line) for line in lines]
        self.keys_at.append([row["key"] for row in rows])
        if self._by_hand is not None and has_path and (digest := place.content):
            places = text_paths(Path(where), rows[0]["name"] if rows else "")
            if (by_hand := self._by_hand.of(places, digest, where)) is not None:
                medium["text"] = by_hand[0].name, by_hand[1].strip()
                self.by_hand.update(self.keys_at[-1])
        content = place.content or f"{place.source}\n{place.media_path}"
        self.medium_of |= {row["key"]: content for row in rows}
        if place.content:
            self.content_of |= {row["key"]: content for row in rows}
        return medium

    def _row(self, line: CaptionRow) -> ReviewedRow:
        around = self.fixed.about(line.answers)
        _, original, _ = around.parts(line.original or line.caption)
        key, *unnamed = keys_of(line.features, line.name, line.prompt, original)
        if unnamed:
            self._unnamed[key] = unnamed[0]
        row: ReviewedRow = {
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
        self.rows[key], self.chunks[key] = row, (line.features, line.name, line.prompt)
        self.copies[key] += 1
        self.around[key] = around
        self.written[key] = line.caption
        return row

"""Holds the captions of a run's folder with the user's edits, and records new edits."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.disk.json_shapes import Nullable, OptionalField, ShapeError, check, flag, text
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.store import local_folder, open_store
from artifacts.remote.addresses import is_address
from artifacts.remote.media_cache import is_copy
from artifacts.schema import values_of
from artifacts.texts.captions import CONFIDENCE
from artifacts.texts.edits import (
    ACCEPTED,
    REDO,
    REJECTED,
    UNDO,
    UNTOUCHED,
    Edit,
    EditJournal,
    Edits,
    FixedText,
    StoredEdits,
    changes_of,
    elsewhere_note,
    event_of,
    keys_of,
    review,
    unused_note,
)
from artifacts.wording import counted
from flows.core.machine.versions import now
from flows.core.media.generated_files import HandwrittenTexts, text_paths
from flows.core.media.sources import MEDIA_SUFFIXES
from flows.outputs.folder.trust import belief_in
from flows.outputs.media_rows import (
    CAPTION,
    failed_media,
    is_other,
    media_with_captions,
    path_of,
    shown_medium,
)
from flows.outputs.record.run_read import load_record

log = logging.getLogger(__name__)

LINE = {**CAPTION, "features": text, "original": OptionalField(text)}
LONGEST = 1 << 16
"""Largest number of characters of a caption."""
LONGEST_NAME = 200
"""Largest number of characters of an edit's id and of its description."""
EDIT_REQUEST = {
    "id": text,
    "does": text,
    "changes": OptionalField(
        [{"of": text, "caption": Nullable(text), "review": review, "unread": OptionalField(flag)}]
    ),
}
"""The request body of an edit."""


class EditRefused(ValueError):
    """An edit that cannot be applied. The message tells the user why."""

    key = ""
    """Key of the caption whose new text is refused; empty: it is not about one."""


class ReviewedCaptions:
    """The captions of one folder, and the journal of edits."""

    def __init__(
        self, out: Path, store: str = "", *, trust: bool = False, shows_all: bool = False
    ) -> None:
        """Read a run's folder and open its journal. `store` and `trust` are as in `belief_in`. With
        `shows_all`, edits of others that are not trusted are shown, but enter no store, and so is a
        folder that this user may only read. Raises UsageError, EnvironmentFault."""
        self.out = out
        self._named, self._trust, self._shows_all = store, trust, shows_all
        self._is_released = self._may_reopen = self._is_stored = False
        self._former: dict[str, tuple[tuple[str, str, str], str]] = {}
        """Caption key before learning → its chunk and the words of then."""
        self.load()
        if not self.media and not self.failures:
            raise UsageError(
                f"{out} has no captions to review",
                hint="Run `penstock caption` first, and give its --out",
            )
        self.journal = self._opened_journal()
        try:
            self._stored = self._stored_edits()
        except BaseException:
            self.journal.close()
            raise

    def _opened_journal(self) -> EditJournal:
        # Noted, an edit of a stranger's captions would count in a folder that it is copied to.
        store, proof, notes = self.belief.store, self.belief.proof(), self.belief.is_own
        return EditJournal(self.out, store, proof, notes=notes, may_view=self._shows_all)

    @property
    def _own(self) -> Edits:
        """Return the edits of the journal that count here."""
        return self.journal.edits if self._shows_all else self.journal.proved

    def _stored_edits(self) -> StoredEdits | None:
        """Return the edits in the run's store, after adding the proved ones of this journal. Return
        None if the store is not believed, not on this machine, or cannot be used."""
        url = self.belief.store
        try:
            if not url or (local := local_folder(url)) is None:
                return None
            stored = StoredEdits(local)
            if stored.is_writable():
                stored.take_in(self.journal.proved)
                self._is_stored = True
            elif not self.journal.refusal:
                log.warning("edits are kept in this folder only: %s is not writable", stored.path)
            return stored
        except (EnvironmentFault, UsageError) as error:
            log.warning("edits are kept in this folder only: %s", error)
            return None

    def edits(self) -> dict[str, Edit]:
        """Return caption key → current edit, from this folder or another one with the same
        store."""
        stored = self._stored() if self._stored is not None else {}
        own = self._own.now
        of_others = {key: self._edit(key, own, stored) for key in self.rows if key not in own}
        return {**{key: edit for key, edit in of_others.items() if edit is not None}, **own}

    def _edit(self, key: str, own: Mapping[str, Edit], stored: Mapping[str, Edit]) -> Edit | None:
        """Return the edit of a caption, from this folder or another one; None without one."""
        for each in (key, self._unnamed.get(key, key)):
            if (edit := own.get(each, stored.get(each))) is not None:
                return edit
        return None

    def load(self) -> None:
        """Read the files of the last run, which may still be running. Raises EnvironmentFault."""
        if self._may_reopen:
            self._reopen()
            return
        self.record = load_record(self.out)
        self.belief = belief_in(self.out, self._named, trust=self._trust)
        words = self.record["plan"].get("words") or {}
        self.fixed = FixedText.of(words)
        self.schema = words.get("schema", "")
        found = media_with_captions(self.out, LINE)
        self.places: list[str] = []
        """Path or address of each medium; empty: unknown."""
        self._entries: list[dict[str, Any]] = []
        self.rows: dict[str, dict[str, Any]] = {}
        self.shown: Counter[str] = Counter()
        """Caption key → number of captions that have it: those of files of one content."""
        self.chunks: dict[str, tuple[str, str, str]] = {}
        """Caption key → its features, its prompt's name and its prompt."""
        self.content_of: dict[str, str] = {}
        """Caption key → content digest of its medium, if it is known."""
        self.medium_of: dict[str, str] = {}
        """Caption key → identity of its medium: the content; unknown: source and path."""
        self._unnamed: dict[str, str] = {}
        """Key of a caption whose prompt has a name → its key of the time without one."""
        url = self.belief.store if self.belief.is_own else ""
        is_here = bool(url) and local_folder(url) is not None
        self._by_hand = HandwrittenTexts(open_store(url), self.out) if is_here else None
        self.media = [self._medium(place, rows) for place, rows in found]
        self.failures = failed_media(self.out)

    def place_shown(self, number: int) -> str:
        """Return the path or address of a medium; empty if it is unknown, or if other content than
        was captioned is there now."""
        if number >= len(self.places) or is_other(self._entries[number]):
            return ""
        return self.places[number]

    def close(self) -> None:
        """Close the journal, so that others can review the folder."""
        if not self._is_released:
            self.journal.close()

    def release(self) -> None:
        """Let `penstock learn` write the journal and the captions, and refuse edits."""
        self.close()
        self._is_released, self._may_reopen = True, False

    def take_back(self) -> None:
        """Accept edits again: the next call that needs journal and captions reads them again."""
        self._may_reopen = True

    def _reopen(self) -> None:
        """Read journal and captions again after learning. Raises EnvironmentFault."""
        self.journal = self._opened_journal()
        self._is_released = self._may_reopen = False
        before = {key: (self.chunks[key], row["said"]) for key, row in self.rows.items()}
        self.load()
        self._former |= {key: one for key, one in before.items() if key not in self.rows}

    def _row_of(self, key: str) -> tuple[dict[str, Any] | None, str]:
        """Return the row of a caption and the words that the page showed: those before learning if
        the page does not know the new ones yet."""
        if key in self.rows or key not in self._former:
            row = self.rows.get(key)
            return row, row["said"] if row else ""
        chunk, shown = self._former[key]
        found = next((key for key, other in self.chunks.items() if other == chunk), "")
        return self.rows.get(found), shown

    def steps(self) -> dict[str, Any]:
        """Return descriptions of the next undo and redo; empty if there is none."""
        target = self.journal.edits.target
        return {does: _description(target({"does": does})) for does in (UNDO, REDO)}

    def counts(self) -> Counter[str]:
        """Count the captions that are shown, `captions`, and those of them that are `corrected`,
        `accepted` and `rejected`. An edit counts for every file of its content."""
        edits, found = self.edits(), Counter(captions=self.shown.total())
        for key, count in self.shown.items():
            if (edit := edits.get(key)) is not None:
                found["corrected"] += count * (edit.caption is not None)
                found[edit.review] += count * bool(edit.review)
        return found

    def unused(self) -> str:
        """Return which edits of the journal apply to no caption here, or which media were rejected
        in another folder; empty: none."""
        now = self.edits()
        rejected = {key: now.get(key, UNTOUCHED).review == REJECTED for key in self.rows}
        kept = {row["media_path"] for key, row in self.rows.items() if not rejected[key]}
        unused = self._own.unused({*self.rows, *self._unnamed.values()})
        if unused or self._stored is None:
            return unused_note(unused, kept)
        here = (
            ((content, self.rows[key]["start"]), rejected[key])
            for key, content in self.content_of.items()
        )
        return elsewhere_note(self._stored.rejected, here)

    def apply(self, request: Any) -> dict[str, Any]:
        """Apply an edit durably, and return the captions that it changed. Raises EditRefused,
        EnvironmentFault."""
        if self._may_reopen:
            self._reopen()
        if self.journal.refusal:
            raise EditRefused(self.journal.refusal)
        if self._is_released:
            raise EnvironmentFault("a model is learning", hint="Edits are saved when it is done")
        try:
            check(request, EDIT_REQUEST)
        except ShapeError as error:
            raise EditRefused(str(error)) from error
        if max(len(request["id"]), len(request["does"])) > LONGEST_NAME:
            raise EditRefused(f"an edit's name has at most {LONGEST_NAME} characters")
        action = {"id": request["id"], "time": now(), "does": request["does"]}
        if request["does"] not in (UNDO, REDO):
            action["changes"] = self._changes(request.get("changes") or [])
        elif (target := self.journal.edits.target(action)) is not None:
            action["of"] = target["id"]
        changed = self.add(action)
        own, stored = self._own.now, self._stored() if self._stored is not None else {}
        edits = {key: self._edit(key, own, stored) or UNTOUCHED for key in changed}
        return {"edits": {key: values_of(edit) for key, edit in edits.items()}, **self.steps()}

    def add(self, action: Mapping[str, Any]) -> list[str]:
        """Add an action to the journal durably, once, and to the store. Return the keys of the
        captions that it changed. Raises EnvironmentFault."""
        is_repeated = action["id"] in self.journal.edits.ids
        event = event_of(self.journal.edits, action)
        changed = self.journal.add(action)
        if self._stored is not None and self._is_stored and event is not None and not is_repeated:
            self._stored.add([event])
        return changed

    def _changes(self, request: list[dict[str, Any]]) -> Any:
        edits: dict[str, Edit] = {}
        for change in request:
            row, shown = self._row_of(change["of"])
            if row is None:
                raise EditRefused("this caption is no longer in the run: reload the page")
            # Whoever accepted the words of before meant these, not those that came since.
            given = shown if change["review"] == ACCEPTED else None
            given = given if change["caption"] is None else change["caption"]
            try:
                caption = self._caption(row, given)
            except EditRefused as error:
                error.key = row["key"]
                raise
            unread = caption is not None and change.get("unread", False)
            edits[row["key"]] = Edit(caption=caption, review=change["review"], unread=unread)
        if not edits:
            raise EditRefused("no caption given")
        return changes_of((self.rows[key] for key in edits), edits, self.content_of)

    def _caption(self, row: Mapping[str, Any], given: str | None) -> str | None:
        """Return the text that replaces the model's caption; None if they are equal. Trigger,
        prefix and suffix, which a run adds, are dropped. Control characters, which pasted text may
        have, become spaces."""
        if given is None or row["said"] in (given, given := self.fixed.parts(given)[1]):
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

    def _medium(self, place: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
        # As on a page in the run's folder; the server looks up the file by its number.
        medium = shown_medium(place, self.out, reads=False)
        if "address" in place:  # it is fetched when viewed
            medium["gone"] = ""
        path = path_of(place)
        # A copy on another machine, or in another cache folder, is fetched again.
        known = "address" not in place or is_copy(Path(path))
        where = path if known else place["address"]
        # A folder of another person makes no request, and shows no file that is no medium.
        is_shown = not is_address(where) and Path(where).suffix.lower() in MEDIA_SUFFIXES
        self.places.append(where if self.belief.is_own or is_shown else "")
        medium["number"] = len(self.places) - 1
        self._entries.append(place)
        medium["captions"] = rows = [self._row(line) for line in lines]
        if self._by_hand is not None and known and (digest := place.get("content")):
            places = text_paths(Path(where), rows[0]["name"] if rows else "")
            if (found := self._by_hand.of(places, digest, where)) is not None:
                medium["text"] = found[0].name, found[1].strip()
        content = place.get("content") or f"{place['source']}\n{place['media_path']}"
        self.medium_of |= {row["key"]: content for row in rows}
        if place.get("content"):
            self.content_of |= {row["key"]: content for row in rows}
        return medium

    def _row(self, line: dict[str, Any]) -> dict[str, Any]:
        _, original, _ = self.fixed.parts(line.get("original") or line["caption"])
        prompt, name = line.get("prompt", ""), line.get("name", "")
        key, *unnamed = keys_of(line["features"], name, prompt, original)
        if unnamed:
            self._unnamed[key] = unnamed[0]
        row = {
            "key": key,
            "media_path": line["media_path"],
            "start": line["start"],
            "end": line["end"],
            "said": original,
            "name": name,
            "prompt": prompt,
            "cut": line.get("ended") == "length",
            "warnings": [*line.get("warnings", ())],
            **{field: line.get(field) for field in CONFIDENCE},
        }
        self.rows[key], self.chunks[key] = row, (line["features"], name, prompt)
        self.shown[key] += 1
        return row


def _description(action: Mapping[str, Any] | None) -> str:
    """Return the description of an action for the undo button."""
    if action is None:
        return ""
    count = len(action["changes"])
    return f"{action['does']}, {counted(count, 'caption')}" if count > 1 else str(action["does"])

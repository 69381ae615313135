"""Holds the user's edits of the captions of a run's folder, and records new ones."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from artifacts.disk.json_records import typed
from artifacts.disk.json_shapes import Json, ShapeError
from artifacts.disk.json_types import Text
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.store import local_folder
from artifacts.schema import values_of
from artifacts.texts.edits import (
    ACCEPTED,
    REDO,
    REJECTED,
    UNDO,
    UNTOUCHED,
    Action,
    CaptionChange,
    Edit,
    EditJournal,
    Edits,
    Review,
    ReviewedRow,
    StoredEdits,
    elsewhere_note,
    event_of,
    unused_note,
)
from artifacts.wording import counted
from flows.commands.review.folder_captions import EditRefused, FolderCaptions
from flows.core.machine.versions import now

log = logging.getLogger(__name__)

LONGEST_NAME = 200
"""Largest number of characters of an edit's id and of its description."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeRequest:
    """What a request makes of one caption."""

    of: Text
    caption: Text | None
    review: Review
    unread: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRequest:
    """The request body of an edit."""

    id: Text
    does: Text
    changes: tuple[ChangeRequest, ...] = ()


class ReviewedCaptions:
    """The captions of one folder, and the journal of edits."""

    def __init__(
        self, out: Path, store: str = "", *, trust: bool = False, shows_all: bool = False
    ) -> None:
        """Read a run's folder and open its journal. `store` and `trust` are as in `belief_in`. With
        `shows_all`, edits of others that are not trusted are shown, but enter no store, and so is a
        folder that this user may only read. Raises UsageError, EnvironmentFault."""
        self.out = out
        self._read, self._shows_all = partial(FolderCaptions, out, store, trust), shows_all
        self._is_released = self._may_reopen = self._is_stored = False
        self._former: dict[str, tuple[tuple[str, str, str], str]] = {}
        """Caption key before learning → its chunk and the words of then."""
        self.folder = self._read()
        if not self.folder.media and not self.folder.failures:
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
        belief = self.folder.belief
        store, proof, notes = belief.store, belief.proof(), belief.is_own
        return EditJournal(self.out, store, proof, notes=notes, may_view=self._shows_all)

    @property
    def _own(self) -> Edits:
        """Return the edits of the journal that count here."""
        return self.journal.edits if self._shows_all else self.journal.proved

    def _stored_edits(self) -> StoredEdits | None:
        """Return the edits in the run's store, after adding the proved ones of this journal. Return
        None if the store is not believed, not on this machine, or cannot be used."""
        url = self.folder.belief.store
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
        own = self._own.now
        return {**self._edits_of(key for key in self.folder.rows if key not in own), **own}

    def proved_edits(self) -> dict[str, Edit]:
        """Return the same as far as it is proved to be the user's."""
        stored, proved = self._stored() if self._stored is not None else {}, self.journal.proved
        edits = {key: proved.now.get(key, stored.get(key)) for key in self.folder.rows}
        return {key: edit for key, edit in edits.items() if edit is not None}

    def _edits_of(self, keys: Iterable[str]) -> dict[str, Edit]:
        """Return the edits of these captions, as far as they have one."""
        own, stored = self._own.now, self._stored() if self._stored is not None else {}
        edits: dict[str, Edit] = {}
        for key in keys:
            of_key = (own.get(name, stored.get(name)) for name in self.folder.keys_of(key))
            if (edit := next((edit for edit in of_key if edit is not None), None)) is not None:
                edits[key] = edit
        return edits

    def load(self) -> None:
        """Read the files of the last run, which may still be running. Raises EnvironmentFault."""
        if self._may_reopen:
            self._reopen()
        else:
            self.folder = self._read()

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
        before, self.folder = self.folder, self._read()
        self._former |= {
            key: (before.captions[key].chunk, row["said"])
            for key, row in before.rows.items()
            if key not in self.folder.rows
        }

    def _row_of(self, key: str) -> tuple[ReviewedRow | None, str]:
        """Return the row of a caption and the words that the page showed: those before learning if
        the page does not know the new ones yet."""
        rows = self.folder.rows
        if key in rows or key not in self._former:
            row = rows.get(key)
            return row, row["said"] if row else ""
        chunk, shown = self._former[key]
        of_chunk = (key for key, other in self.folder.captions.items() if other.chunk == chunk)
        now = next(of_chunk, "")
        return rows.get(now), shown

    def steps(self) -> dict[str, str]:
        """Return descriptions of the next undo and redo; empty if there is none."""
        stepped = self.journal.edits.stepped
        return {does: _description(stepped(does)) for does in (UNDO, REDO)}

    def counts(self) -> Counter[str]:
        """Count the captions that are shown, `captions`, and those of them that are `corrected`,
        `accepted` and `rejected`. An edit counts for every file of its content."""
        edits, captions = self.edits(), self.folder.captions
        counts = Counter(captions=sum(caption.copies for caption in captions.values()))
        for key, caption in captions.items():
            count = caption.copies
            if (edit := edits.get(key)) is not None:
                counts["corrected"] += count * (edit.caption is not None)
                counts[edit.review] += count * bool(edit.review)
        return counts

    def unused(self) -> str:
        """Return which edits of the journal apply to no caption here, or which media were rejected
        in another folder; empty: none."""
        now, rows = self.edits(), self.folder.rows
        rejected = {key: now.get(key, UNTOUCHED).review == REJECTED for key in rows}
        kept = {row["media_path"] for key, row in rows.items() if not rejected[key]}
        unused = self._own.unused(self.folder.edit_keys())
        if unused or self._stored is None:
            return unused_note(unused, kept)
        here = (
            ((caption.content, rows[key]["start"]), rejected[key])
            for key, caption in self.folder.captions.items()
            if caption.content
        )
        return elsewhere_note(self._stored.rejected, here)

    def apply(self, request: Json) -> dict[str, Any]:
        """Apply an edit durably, and return the captions that it changed. Raises EditRefused,
        EnvironmentFault."""
        if self._may_reopen:
            self._reopen()
        if self.journal.refusal:
            raise EditRefused(self.journal.refusal)
        if self._is_released:
            raise EnvironmentFault("a model is learning", hint="Edits are saved when it is done")
        try:
            edit = typed(EditRequest, request)
        except ShapeError as error:
            raise EditRefused(str(error)) from error
        if max(len(edit.id), len(edit.does)) > LONGEST_NAME:
            raise EditRefused(f"an edit's name has at most {LONGEST_NAME} characters")
        action = Action(id=edit.id, time=now(), does=edit.does)
        if edit.does not in (UNDO, REDO):
            action = replace(action, changes=self._changes(edit.changes))
        elif (target := self.journal.edits.target(action)) is not None:
            action = replace(action, of=target.id)
        changed = self.add(action)
        edits = self._edits_of(changed)
        values = {key: values_of(edits.get(key, UNTOUCHED)) for key in changed}
        return {"edits": values, **self.steps()}

    def add(self, action: Action) -> list[str]:
        """Add an action to the journal durably, once, and to the store. Return the keys of the
        captions that it changed. Raises EnvironmentFault."""
        is_repeated = action.id in self.journal.edits.ids
        event = event_of(self.journal.edits, action)
        changed = self.journal.add(action)
        if self._stored is not None and self._is_stored and event is not None and not is_repeated:
            self._stored.add([event])
        return changed

    def _changes(self, requested: Sequence[ChangeRequest]) -> tuple[CaptionChange, ...]:
        edits: dict[str, Edit] = {}
        for change in requested:
            row, shown = self._row_of(change.of)
            if row is None:
                raise EditRefused("this caption is no longer in the run: reload the page")
            # Whoever accepted the words of before meant these, not those that came since.
            given = shown if change.review == ACCEPTED else None
            given = given if change.caption is None else change.caption
            try:
                caption = self.folder.replacing(row, given)
            except EditRefused as error:
                error.key = row["key"]
                raise
            unread = caption is not None and change.unread
            edits[row["key"]] = Edit(caption=caption, review=change.review, unread=unread)
        if not edits:
            raise EditRefused("no caption given")
        return self.folder.changes_of(edits)


def _description(action: Action | None) -> str:
    """Return the description of an action for the undo button."""
    if action is None:
        return ""
    count = len(action.changes)
    return f"{action.does}, {counted(count, 'caption')}" if count > 1 else action.does

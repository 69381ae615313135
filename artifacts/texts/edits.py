"""The captions that a user corrected, accepted or rejected: a run folder's journal, and the copy of
its entries in the store.

Each line of the journal `edits.jsonl` is one user action with every caption that it changed. The
file is append-only. `undo` reverts the last action that is still in force, and `redo` applies it
again. An edit belongs to a chunk and to the model's original caption. If another prompt or model
produces a different caption, the edit does not apply until the original caption comes back. The
model's caption is never overwritten.

The digest of an edit is noted before its line is written. A program that only shows a journal reads
all lines. Only lines that are proved to be this user's by a note enter a store, an output or a
training.

The store keeps the edits in `corrections.jsonl`, so that other run folders, formats and trainers
find them. Each line is one entry of a run folder's journal, or the undo of an entry. The file is
append-only and holds each entry once. A later entry overrides an earlier one by its own timestamp,
whatever the order in which the lines were added. A reader skips torn or damaged lines: the journal
of the run folder still has them, and they are imported again when that folder is next opened.
"""

import logging
import os
import shlex
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final, Literal, NotRequired, TypedDict

from artifacts.digests import digest_of
from artifacts.disk.faults import disk_faults, fault_of, read_fault
from artifacts.disk.files import append_lines, encoded
from artifacts.disk.json_records import typed
from artifacts.disk.json_shapes import BYTES, Json, parse
from artifacts.disk.json_types import Count, Number, Text
from artifacts.disk.locks import try_lock
from artifacts.disk.regular_files import is_denied, open_below, open_regular, read_bytes, user_text
from artifacts.disk.stamps import Stamp, stamp_of
from artifacts.errors import EnvironmentFault
from artifacts.records.provenance import EDIT, Proof, anybody, note, proof_by
from artifacts.schema import values_of
from artifacts.wording import counted

EDITS: Final = "edits.jsonl"
"""Name of the journal in a run's folder."""
TORN: Final = f"{EDITS}.torn"
"""Name of the file with what crashes tore, beside it."""
UNDO: Final = "undo"
REDO: Final = "redo"
Review = Literal["", "accepted", "rejected"]
"""A user's decision on a caption; empty: none."""
ACCEPTED: Final = "accepted"
REJECTED: Final = "rejected"
DECISIONS: Final = ("corrected", ACCEPTED, REJECTED)
"""What a person may do with a caption."""
KINDS: Final = {REJECTED: "rejection", "": "correction", ACCEPTED: "acceptance"}
"""Decision → what an edit without a text is called."""
WORDS: Final = "said"
"""Field with the model's own words of a caption, in a change and in a row of a review."""
SHORTENED: Final = "shortened for "
"""How the description of an action begins that no person made: texts that were too long for a
trainer. Another folder with the same store may be for another trainer, so no store has them."""
DIGITS: Final = 24
"""Hex digits of a caption's identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionChange:
    """What an action makes of one caption."""

    of: Text
    """Identity of the caption."""
    media_path: Text
    start: Number
    said: Text
    """The model's own words."""
    caption: Text | None
    review: Review
    unread: bool = False
    """As in `Edit`."""
    content: Text | None = None
    """Digest of the medium, if it is known."""

    def to_json(self) -> dict[str, Json]:
        """Return it as a line of the journal has it."""
        values = values_of(self)
        if not self.unread:
            del values["unread"]
        if self.content is None:
            del values["content"]
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One user action, with every caption that it changed."""

    id: Text
    time: Text
    does: Text
    """`undo`, `redo`, or what is shown of it."""
    changes: tuple[CaptionChange, ...] = ()
    round: Count | None = None
    """Number of the round of `penstock learn` that kept decisions in it."""
    of: Text | None = None
    """Id of the action that an undo reverts, or a redo applies again."""

    def __post_init__(self) -> None:
        try:
            datetime.fromisoformat(self.time).timestamp()
        except (ValueError, OverflowError, OSError) as error:
            raise ValueError(f"time: {self.time[:40]!r} is no date and time") from error

    def to_json(self) -> dict[str, Json]:
        """Return it as a line of the journal has it."""
        values: dict[str, Json] = {"id": self.id, "time": self.time, "does": self.does}
        if self.does not in (UNDO, REDO):
            values["changes"] = [change.to_json() for change in self.changes]
        if self.round is not None:
            values["round"] = self.round
        if self.of is not None:
            values["of"] = self.of
        return values


Chunk = tuple[str, float]
"""Content digest of a medium, and start of a chunk."""
REMOVE_LINE = "Remove that line: the other edits do not depend on it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """All user changes of one caption."""

    caption: str | None = None
    """Text that replaces the model's caption."""
    review: Review = ""
    unread: bool = False
    """Whether the text is of a change of many captions at once. It is no decision on this one."""

    @classmethod
    def of(cls, change: CaptionChange) -> "Edit":
        """Return the edit that a change makes."""
        return cls(caption=change.caption, review=change.review, unread=change.unread)

    @property
    def is_decided(self) -> bool:
        """Return whether a person decided on the caption."""
        return bool(self.review) or (self.caption is not None and not self.unread)


UNTOUCHED: Final = Edit()


def key_of(features: str, name: str, prompt: str, original: str) -> str:
    """Return a caption's identity: its features, its prompt and the prompt's name, and the model's
    original text without prefix and suffix."""
    return digest_of([features, name, prompt, original])[:DIGITS]


def keys_of(features: str, name: str, prompt: str, original: str) -> tuple[str, ...]:
    """Return the identities whose edits apply to a caption, its own first. A prompt that was given
    a name, because others joined it, keeps the edits of the time when it was alone."""
    names = (name, "") if name else ("",)
    return tuple(key_of(features, prompt_name, prompt, original) for prompt_name in names)


@dataclass(slots=True)
class Edits:
    """The actions of a journal in order, and the edits that result from them."""

    every: list[Action] = field(default_factory=list)
    """All actions, including undo and redo."""
    ids: set[str] = field(default_factory=set)
    """Ids of all actions."""
    done: list[Action] = field(default_factory=list)
    """Actions in force."""
    undone: list[Action] = field(default_factory=list)
    """Actions that redo can apply again, the next one last."""
    now: dict[str, Edit] = field(default_factory=dict)
    """Caption identity → its edit."""
    used: set[str] = field(default_factory=set)
    """Identities of the edited captions that were asked for."""
    unproved: int = 0
    """Actions that were left out, because nothing proves that they are of this user."""

    def __bool__(self) -> bool:
        return bool(self.now)

    def of(self, features: str, name: str, prompt: str, original: str) -> Edit:
        """Return the edit of a caption."""
        keys = keys_of(features, name, prompt, original) if self else ()
        key = next((key for key in keys if key in self.now), None)
        if key is None:
            return UNTOUCHED
        self.used.add(key)
        return self.now[key]

    def apply(self, action: Action) -> list[str]:
        """Apply the next action. Return the identities of the captions that it changed."""
        target = self.target(action)
        self.ids.add(action.id)
        self.every.append(action)
        if target is None:
            return []
        if action.does == UNDO:
            self.done.remove(target)
            self.undone.append(target)
            self.now.clear()
            for past in self.done:
                self._take(past)
            return _keys(target)
        if action.does == REDO:
            self.undone.remove(target)
        else:
            self.undone.clear()
        self.done.append(target)
        self._take(target)
        return _keys(target)

    def target(self, action: Action) -> Action | None:
        """Return the action that an undo reverts or a redo applies again; None if there is none.
        Any other action is returned itself. One in a journal names its target, because the action
        before it may be left out."""
        return self.stepped(action.does, action.of) if action.does in (UNDO, REDO) else action

    def stepped(self, does: str, of: str | None = None) -> Action | None:
        """Return the action that an undo or a redo takes, the last one or that with the id `of`;
        None if there is none."""
        among = self.done if does == UNDO else self.undone
        target = next((past for past in reversed(among) if of in (None, past.id)), None)
        # Undo stops at a round of `penstock learn`: before it, captions had other words, so an undo
        # would only remove decisions from the new ones.
        return None if target is None or target.round is not None else target

    def unused(self, used: Container[str]) -> list[tuple[str, Edit]]:
        """Return the path of the medium and the edit of each edited caption that is not `used`;
        none after a round of `penstock learn`, which carried them over to other captions."""
        if any(action.round is not None for action in self.every):
            return []
        paths = {c.of: c.media_path for action in self.done for c in action.changes}
        edits = ((paths[key], edit) for key, edit in self.now.items() if key not in used)
        return [(path, edit) for path, edit in edits if edit != UNTOUCHED]

    def _take(self, action: Action) -> None:
        for change in action.changes:
            self.now[change.of] = Edit.of(change)


def unused_note(edits: Sequence[tuple[str, Edit]], media: Container[str]) -> str:
    """Return which edits, by kind, apply to no caption of a run, and how many rejected `media` it
    has captions of again; empty without such edits."""
    kinds = Counter(
        "correction" if edit.caption is not None else KINDS[edit.review] for _, edit in edits
    )
    if not kinds:
        return ""
    *first, last = [counted(kinds[kind], kind) for kind in KINDS.values() if kinds[kind]]
    again = len({path for path, edit in edits if edit.review == REJECTED and path in media})
    which = "rejected medium is" if again == 1 else "rejected media are"
    effect = f": {again:,} {which} in the data sets again"
    belong, they, do, them = (
        ("belongs", "It", "does", "it") if len(edits) == 1 else ("belong", "They", "do", "them")
    )
    return (
        f"{', '.join(first)}{' and ' * bool(first)}{last} in {EDITS} {belong} to another prompt, "
        f"model, sampling or file. {they} {do} not apply here{effect * bool(again)}. The same run "
        f"as before brings {them} back"
    )


def elsewhere_note(rejected: Container[Chunk], here: Iterable[tuple[Chunk, bool]]) -> str:
    """Return how many media are in the data sets of a run, though they were rejected in another
    folder; empty: none. `here`: each caption's chunk, and whether it is rejected in this run."""
    again, out = set[Chunk](), set[Chunk]()
    for chunk, is_rejected in here:
        if chunk in rejected:
            (out if is_rejected else again).add(chunk)
    if not (media := {content for content, _ in again - out}):
        return ""
    which = "1 medium is" if len(media) == 1 else f"{len(media):,} media are"
    return (
        f"{which} in the data sets that you rejected in another folder, under another prompt, "
        "model or sampling. Reject them in the review of this folder too"
    )


def _keys(action: Action) -> list[str]:
    return [change.of for change in action.changes]


def lacks_decisions(captions: Path) -> bool:
    """Return whether the journal beside a file of captions changed after that was written."""
    try:
        edits, written = captions.with_name(EDITS).stat(), captions.stat()
    except OSError:
        return False
    return edits.st_size > 0 and edits.st_mtime_ns > written.st_mtime_ns


def how_to_write(folder: Path) -> str:
    """Return what writes the decisions on a run's captions into its files."""
    review = f"penstock review {shlex.quote(str(folder))}"
    return f"Press Write files in `{review}`, or run the same `penstock caption` again"


def read_edits(folder: Path, proof: Proof = anybody) -> Edits:
    """Return the edits in a run's folder that are proved; empty without a journal. Raises
    EnvironmentFault for an invalid line."""
    try:
        return read_journal(folder / EDITS, proof)
    except FileNotFoundError:
        return Edits()


def read_journal(path: Path, proof: Proof = anybody) -> Edits:
    """Return the edits in a journal that are proved. Raises FileNotFoundError, or EnvironmentFault
    for an invalid line."""
    try:
        content = read_bytes(path, BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise read_fault(error, path) from error
    edits = Edits()
    # What follows the last line break was torn by a crash, maybe within a letter of several bytes,
    # and never acknowledged.
    for at, line in enumerate(content.split(b"\n")[:-1], 1):
        if not line.strip():
            continue
        try:
            written = parse(user_text(line, path))
            action = typed(Action, written)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", error)
            raise EnvironmentFault(f"{path} at line {at}: {why}", hint=REMOVE_LINE) from error
        if not proof(written):  # which is of the line as it stands
            edits.unproved += 1
        elif action.id not in edits.ids:  # a copy of a line does nothing
            edits.apply(action)
    return edits


class EditJournal:
    """The only writer of a journal. An action survives a kill and a power cut once `add`
    returned."""

    def __init__(
        self,
        folder: Path,
        store: str = "",
        proof: Proof | None = None,
        *,
        notes: bool = True,
        may_view: bool = False,
    ) -> None:
        """Open the journal of a run's folder. If it `notes` actions, it does so in `store`, too.
        Raises EnvironmentFault if another process has it open, or it is not writable. With
        `may_view`, a journal that this user may only read is read once."""
        self._folder, self._store, self._notes = folder, store, notes
        self.path = path = folder / EDITS
        self.refusal = ""
        """Why no action can be added; empty: it can."""
        try:
            self._file = open_below(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        except OSError as error:
            if not may_view or not is_denied(error):
                raise fault_of(error, path) from error
            self.refusal = f"{path} cannot be written ({error.strerror}), so edits are refused"
        try:
            if not self.refusal and not try_lock(self._file):
                raise EnvironmentFault(
                    f"{path} is open in another review",
                    hint="Continue in that one, or end it and run the same command again: all is "
                    "saved",
                )
            self.edits = read_edits(folder)
            self.proved = read_edits(folder, proof or proof_by(store))
            """Those that are proved, or were made since."""
            if not self.refusal:
                self._cut(os.lseek(self._file, 0, os.SEEK_END))
        except BaseException:
            self.close()
            raise

    def add(self, action: Action) -> list[str]:
        """Append an action durably, once. Return the identities of the captions that it changed. If
        it raises EnvironmentFault, the action had no effect."""
        if action.id in self.edits.ids:
            return []
        written = action.to_json()
        if self._notes:
            note(EDIT, written, self._store)
        line = encoded(written).encode() + b"\n"
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, end)
            raise fault_of(error, self.path) from error
        self.proved.apply(action)
        return self.edits.apply(action)

    def close(self) -> None:
        """Close the journal, so that others can write."""
        if not self.refusal:
            os.close(self._file)

    def _cut(self, size: int) -> None:
        """Truncate a line that a crash tore, after its bytes were kept in a file beside."""
        length = size
        while length and os.pread(self._file, 1, length - 1) != b"\n":
            length -= 1
        if length == size:
            return
        with disk_faults(self._folder / TORN):
            beside = open_below(self._folder / TORN, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            with os.fdopen(beside, "wb") as torn:
                torn.write(os.pread(self._file, size - length, length) + b"\n")
                torn.flush()
                os.fsync(beside)
            os.ftruncate(self._file, length)


class ReviewedRow(TypedDict):
    """A caption of a run's folder without edits, as the page of a review gets it."""

    key: str
    """Identity of the caption."""
    media_path: str
    start: float
    end: float
    said: str
    """The model's own words."""
    name: str
    """Name of its prompt, if there are several."""
    prompt: str
    cut: bool
    """Whether it ended at its token limit."""
    warnings: Sequence[str]
    logprob: float | None
    margin: float | None
    margin_at: int | None
    group: NotRequired[int]
    """Number of the group of copies that its medium is in."""


def changes_of(
    rows: Iterable[ReviewedRow], edit_of: Mapping[str, Edit], content_of: Mapping[str, str]
) -> tuple[CaptionChange, ...]:
    """Return the changes of an action. The mappings are by key of a caption."""
    return tuple(
        CaptionChange(
            of=row["key"],
            media_path=row["media_path"],
            start=row["start"],
            said=row[WORDS],
            caption=edit_of[row["key"]].caption,
            review=edit_of[row["key"]].review,
            unread=edit_of[row["key"]].unread,
            content=content_of.get(row["key"]),
        )
        for row in rows
    )


CORRECTIONS: Final = "corrections.jsonl"
"""Name of the file next to a store's objects."""
LOCK_SECONDS: Final = 5.0
"""Longest wait for another writer. After it a line is added without the lock, and may be torn."""

log = logging.getLogger(__name__)


def event_of(edits: Edits, action: Action) -> Action | None:
    """Return a journal action as a store event. `edits` is the state before it. Return None for an
    undo or redo without effect, and for what no store has."""
    target = edits.target(action)
    if target is not None and target.does.startswith(SHORTENED):
        return None
    event = partial(Action, id=_name(action), time=action.time, does=action.does)
    if target is action:
        return event(changes=action.changes)
    return event(of=_name(target)) if target is not None else None


def _name(action: Action) -> str:
    """Return the identity of an action, which copies of its folder share."""
    changes = [[change.of, change.caption, change.review] for change in action.changes]
    return digest_of([action.id, action.time, action.does, changes])[:DIGITS]


def _events(edits: Edits) -> Iterator[Action]:
    """Yield all actions of a journal as store events."""
    before = Edits()
    for action in edits.every:
        if (event := event_of(before, action)) is not None:
            yield event
        before.apply(action)


class StoredEdits:
    """The edits that one store holds, and the corrections that result from them."""

    def __init__(self, local: Path) -> None:
        """Take the folder next to a store's objects."""
        self.path = local / CORRECTIONS
        self._forget()

    def _forget(self) -> None:
        self._read: tuple[int, int] = (0, 0)
        """The file's inode, and the number of bytes read so far."""
        self._ids: set[str] = set()
        self._actions: list[tuple[float, int, Action]] = []
        """Actions with their time and their position in the file."""
        self._undone: set[str] = set()
        self._now: dict[str, Edit] = {}
        self.rejected: frozenset[Chunk] = frozenset()
        """Chunks with a rejected caption, as of the last call."""

    def __call__(self) -> Mapping[str, Edit]:
        """Return caption key → current edit. It is a new mapping whenever something was added."""
        try:
            stamp = stamp_of(self.path)
            if stamp.inode != self._read[0] or stamp.size < self._read[1]:
                self._forget()
            if stamp.size > self._read[1]:
                self._take(*self._lines(stamp.inode))
        except FileNotFoundError:
            if self._read[1]:
                self._forget()
        except OSError as error:
            raise read_fault(error, self.path) from error
        return self._now

    def is_writable(self) -> bool:
        """Return whether this user may add edits."""
        existing = next(filter(Path.exists, (self.path, *self.path.parents)))
        return os.access(existing, os.W_OK)

    def take_in(self, edits: Edits) -> int:
        """Add a journal's actions that the store does not have yet, and return their number. Raises
        EnvironmentFault."""
        return self.add(_events(edits)) if edits.every else 0

    def add(self, events: Iterable[Action]) -> int:
        """Append new events durably, each once, and return their number. Raises
        EnvironmentFault."""
        self()
        new = [event for event in events if event.id not in self._ids]
        if not new:
            return 0
        with disk_faults(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(self.path, flags, 0o666)
            try:
                _lock(file)
                append_lines(file, (event.to_json() for event in new))
            finally:
                os.close(file)
        return len(new)

    def _lines(self, inode: int) -> tuple[int, list[bytes]]:
        """Return the complete lines added since the last read, and their total size."""
        with open_regular(self.path) as file:
            file.seek(self._read[1])
            added = file.read()
        whole_lines = added[: added.rfind(b"\n") + 1]
        self._read = (inode, self._read[1] + len(whole_lines))
        return len(whole_lines), whole_lines.split(b"\n")

    def _take(self, size: int, lines: list[bytes]) -> None:
        if not size:
            return
        for line in filter(None, lines):
            try:
                event = typed(Action, parse(line.decode()))
            except ValueError as error:
                log.warning("%s: line skipped: %s", self.path, error)
                continue
            if event.id in self._ids:
                continue
            self._ids.add(event.id)
            if event.does == UNDO:
                self._undone.add(event.of or "")
            elif event.does == REDO:
                self._undone.discard(event.of or "")
            else:
                at = datetime.fromisoformat(event.time).timestamp()
                self._actions.append((at, len(self._actions), event))
        self._actions.sort(key=lambda action: action[:2])
        changes = [
            change
            for _, _, action in self._actions
            if action.id not in self._undone
            for change in action.changes
        ]
        self._now = {change.of: Edit.of(change) for change in changes}
        self.rejected = frozenset(
            (change.content, change.start)
            for change in changes
            if change.content is not None and self._now[change.of].review == REJECTED
        )


class EditsInForce:
    """The edits that apply to a run: first the proved ones in the journal of its folder, then those
    of any other folder with the same store."""

    def __init__(self, out: Path, local: Path, proof: Proof) -> None:
        self._out, self._proof, self._stored = out, proof, StoredEdits(local)
        self._stamp: Stamp | None = None
        self._own = Edits()
        """Those of the journal, which is read again when it has grown."""
        self._seen: tuple[object, object] = (None, None)
        self._edits = Edits()

    def _journal(self) -> Edits:
        try:
            stamp = stamp_of(self._out / EDITS)
        except OSError:
            if self._stamp is not None:
                self._own, self._stamp = Edits(), None
            return self._own
        if stamp != self._stamp:
            self._own, self._stamp = read_edits(self._out, self._proof), stamp
        return self._own

    def __call__(self) -> Edits:
        own, stored = self._journal(), self._stored()
        if self._seen[0] is not own or self._seen[1] is not stored:
            self._edits, self._seen = Edits(now={**stored, **own.now}), (own, stored)
        return self._edits

    def unused(self) -> list[tuple[str, Edit]]:
        """Return the path of the medium and the edit of each caption that was edited in this folder
        and that the run does not have."""
        return self._journal().unused(self().used)

    def rejected_elsewhere(self, here: Iterable[tuple[Chunk, bool]]) -> str:
        """Return which media of a run were rejected in another folder with the same store, as
        `elsewhere_note` does."""
        self._stored()
        return elsewhere_note(self._stored.rejected, here) if self._stored.rejected else ""

    def unproved(self) -> int:
        """Return the number of actions in the folder's journal that are left out."""
        return self._journal().unproved

    def take_in(self) -> int:
        """Add the folder's journal to the store, and return the number of new actions. Raises
        EnvironmentFault."""
        return self._stored.take_in(self._journal())


def _lock(file: int) -> None:
    """Lock the file, waiting up to LOCK_SECONDS for other writers."""
    until = time.monotonic() + LOCK_SECONDS
    while not try_lock(file) and time.monotonic() <= until:
        time.sleep(0.01)

"""User corrections of captions, kept in the store so that other run folders, formats and trainers
find them.

Each line of `corrections.jsonl` is one entry of a run folder's edit journal, or the undo of an
entry. The file is append-only and holds each entry once. A later entry overrides an earlier one by
its own timestamp, whatever the order in which the lines were added. Torn or damaged lines are
skipped: the journal of the run folder still has them and is imported again when that folder is next
opened.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from artifacts.captions import ENCODER
from artifacts.edits import DEED, DIGITS, REDO, UNDO, UNTOUCHED, Edit, Edits, EditsOf
from artifacts.json_shapes import check, parse
from artifacts.keys import digest_of
from artifacts.locks import try_lock
from artifacts.regular_files import open_regular
from artifacts.signing import Proof
from artifacts.stamps import stamp_of
from artifacts.store import fault_of, read_fault

CORRECTIONS: Final = "corrections.jsonl"
"""Name of the file next to a store's objects."""
LOCK_SECONDS: Final = 5.0
"""Longest wait for another writer. After it a line is added without the lock, and may be torn."""

log = logging.getLogger(__name__)


def event_of(edits: Edits, deed: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a journal action as a store event. `edits` is the state before it. Return None for an
    undo or redo without effect."""
    event = {"id": _name(deed), "time": deed["time"], "does": deed["does"]}
    target = edits.target(deed)
    if target is deed:
        return {**event, "changes": [*deed.get("changes", ())]}
    return {**event, "of": _name(target)} if target is not None else None


def _name(deed: Mapping[str, Any]) -> str:
    """Return the identity of an action, which copies of its folder share."""
    changes = [[c["of"], c["caption"], c["review"]] for c in deed.get("changes", ())]
    return digest_of([deed["id"], deed["time"], deed["does"], changes])[:DIGITS]


def _events(edits: Edits) -> Iterator[dict[str, Any]]:
    """Yield all actions of a journal as store events."""
    before = Edits()
    for deed in edits.every:
        if (event := event_of(before, deed)) is not None:
            yield event
        before.apply(deed)


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
        self._deeds: list[tuple[float, int, Mapping[str, Any]]] = []
        """Actions with their time and their position in the file."""
        self._undone: set[str] = set()
        self._now: dict[str, Edit] = {}

    def __call__(self) -> Mapping[str, Edit]:
        """Return caption key → current edit. It is a new mapping whenever something was added."""
        try:
            stamp = stamp_of(self.path)
            if stamp.inode != self._read[0] or stamp.size < self._read[1]:
                self._forget()
            if stamp.size > self._read[1]:
                self._take(*self._lines(stamp.inode))
        except FileNotFoundError:
            if self._read[0]:
                self._forget()
        except OSError as error:
            raise read_fault(error, self.path) from error
        return self._now

    def is_writable(self) -> bool:
        """Return whether this user may add edits."""
        there = next(filter(Path.exists, (self.path, *self.path.parents)))
        return os.access(there, os.W_OK)

    def take_in(self, edits: Edits) -> int:
        """Add a journal's actions that the store does not have yet, and return their number. Raises
        EnvironmentFault."""
        return self.add(_events(edits)) if edits.every else 0

    def add(self, events: Iterable[Mapping[str, Any]]) -> int:
        """Append new events durably, each once, and return their number. Raises
        EnvironmentFault."""
        self()
        new = [event for event in events if event["id"] not in self._ids]
        if not new:
            return 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(self.path, flags, 0o666)
            try:
                _lock(file)
                _append(file, new)
            finally:
                os.close(file)
        except OSError as error:
            raise fault_of(error, self.path) from error
        return len(new)

    def _lines(self, inode: int) -> tuple[int, list[bytes]]:
        """Return the complete lines added since the last read, and their total size."""
        with open_regular(self.path) as file:
            file.seek(self._read[1])
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._read = (inode, self._read[1] + len(whole))
        return len(whole), whole.split(b"\n")

    def _take(self, size: int, lines: list[bytes]) -> None:
        if not size:
            return
        for line in filter(None, lines):
            try:
                event = parse(line.decode())
                check(event, DEED)
            except ValueError as error:
                log.warning("%s: line skipped: %s", self.path, error)
                continue
            if event["id"] in self._ids:
                continue
            self._ids.add(event["id"])
            if event["does"] == UNDO:
                self._undone.add(event.get("of", ""))
            elif event["does"] == REDO:
                self._undone.discard(event.get("of", ""))
            else:
                at = datetime.fromisoformat(event["time"]).timestamp()
                self._deeds.append((at, len(self._deeds), event))
        self._deeds.sort(key=lambda deed: deed[:2])
        self._now = {
            change["of"]: Edit(caption=change["caption"], review=change["review"])
            for _, _, deed in self._deeds
            if deed["id"] not in self._undone
            for change in deed.get("changes", ())
        }


class EditsInForce:
    """The edits that apply to a run: first the proved ones in the journal of its folder, then those
    of any other folder with the same store."""

    def __init__(self, out: Path, local: Path, proof: Proof) -> None:
        self._own, self._stored = EditsOf(out, proof), StoredEdits(local)
        self._seen: tuple[object, object] = (None, None)
        self._edits = Edits()

    def __call__(self) -> Edits:
        own, stored = self._own(), self._stored()
        if self._seen[0] is not own or self._seen[1] is not stored:
            self._edits, self._seen = Edits(now={**stored, **own.now}), (own, stored)
        return self._edits

    def unused(self) -> int:
        """Return the number of edits in the folder's journal that no caption has had, or 0 if a
        round of `penstock learn` carried them over to other captions."""
        own = self._own()
        if any("round" in deed for deed in own.every):
            return 0
        edited = {key for key, edit in own.now.items() if edit != UNTOUCHED}
        return len(edited - self().used)

    def unproved(self) -> int:
        """Return the number of actions in the folder's journal that are left out."""
        return self._own().unproved

    def take_in(self) -> int:
        """Add the folder's journal to the store, and return the number of new actions. Raises
        EnvironmentFault."""
        return self._stored.take_in(self._own())


def _append(file: int, events: Iterable[Mapping[str, Any]]) -> None:
    """Append lines durably, after a line that a crash tore. Raises OSError."""
    end = os.lseek(file, 0, os.SEEK_END)
    torn = b"\n" if end and os.pread(file, 1, end - 1) != b"\n" else b""
    written = torn + b"".join(ENCODER.encode(dict(event)).encode() + b"\n" for event in events)
    while written:
        written = written[os.write(file, written) :]
    os.fsync(file)


def _lock(file: int) -> None:
    """Lock the file, waiting up to LOCK_SECONDS for other writers."""
    until = time.monotonic() + LOCK_SECONDS
    while not try_lock(file) and time.monotonic() <= until:
        time.sleep(0.01)

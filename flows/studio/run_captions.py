"""Holds the captions of one run's folder for the page. It reads files again when they change. Each
edit has a revision, so that other tabs see it, and no edit replaces a text it was not based on."""

import json
import secrets
import threading
from pathlib import Path
from typing import Any

from artifacts.edits import REDO, UNDO, UNTOUCHED, Edit
from artifacts.errors import PenstockError, UsageError
from artifacts.json_shapes import ShapeError, check, text
from artifacts.stamps import Stamp, stamp_of
from flows.reviewing.captions import EditRefused, ReviewedCaptions

FILES = ("media.jsonl", "captions.jsonl", "failures.jsonl")
HISTORY = 200
"""Largest number of actions that the page lists."""


class Outdated(Exception):
    """An edit that is based on an older text. `now` has the edits in force."""

    def __init__(self, now: dict[str, Any]) -> None:
        super().__init__("somebody changed it meanwhile")
        self.now = now


class RunCaptions:
    """The captions of one folder. Its methods may be called on several threads."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._lock = threading.RLock()
        self._reviewed: ReviewedCaptions | None = None
        self._stamps: tuple[Stamp | None, ...] = ()
        self._media = b"[]"
        self._session = secrets.token_hex(4)
        self._loads = 0
        self._count = 0
        self._changed: dict[str, int] = {}
        """Key of a caption → number of its last edit."""
        self._paths: dict[str, tuple[str, float]] = {}

    def close(self) -> None:
        """Close the journal, so that others can write it."""
        with self._lock:
            if self._reviewed is not None:
                self._reviewed.close()
            self._reviewed = None

    @property
    def reviewed(self) -> ReviewedCaptions:
        """Return the captions as they are on the disk now. Raises PenstockError."""
        with self._lock:
            self._load()
            if self._reviewed is None:
                raise UsageError(f"{self.out} has no captions yet", hint="Wait for the run")
            return self._reviewed

    def _load(self) -> None:
        stamps = tuple(_stamp(self.out / name) for name in FILES)
        if stamps == self._stamps or not any(stamps):
            return
        if self._reviewed is None:
            try:
                self._reviewed = ReviewedCaptions(self.out)
            except UsageError:
                return  # nothing is written yet
        else:
            self._reviewed.load()
        self._stamps = stamps
        self._loads += 1
        self._media = _json(self._reviewed.media)
        self._paths = {
            row["key"]: (self._reviewed.places[medium["number"]], row["start"])
            for medium in self._reviewed.media
            for row in medium["captions"]
        }

    def place(self, number: int) -> str:
        """Return the path or address of a medium; empty if there is none."""
        with self._lock:
            if self._reviewed is None:
                self._load()
            places = self._reviewed.places if self._reviewed is not None else []
            return places[number] if number < len(places) else ""

    def paths(self, keys: list[str]) -> dict[str, tuple[str, float]]:
        """Return the medium and the start of these captions. Raises EditRefused."""
        with self._lock:
            _ = self.reviewed
            if not keys or not all(key in self._paths for key in keys):
                raise EditRefused("these captions are no longer in the run: reload the page")
            return {key: self._paths[key] for key in keys}

    def body(self, since: str) -> bytes:
        """Return what changed since a revision as JSON: everything, only edits, or nothing. Raises
        PenstockError."""
        with self._lock:
            self._load()
            revision = f"{self._session}-{self._loads}-{self._count}"
            head: dict[str, Any] = {"revision": revision, "name": self.out.absolute().name}
            if self._reviewed is None:
                return _json({**head, "media": [], "failures": [], "edits": {}, "empty": True})
            base, _, count = since.rpartition("-")
            if base == f"{self._session}-{self._loads}" and count.isdigit():
                now = self._reviewed.edits() if int(count) < self._count else {}
                changed = [key for key, number in self._changed.items() if number > int(count)]
                head["edits"] = {key: _edit(now.get(key, UNTOUCHED)) for key in changed}
                return _json({**head, **self._reviewed.steps()})
            every = {key: _edit(edit) for key, edit in self._reviewed.edits().items()}
            rest = {
                **head,
                "prefix": _prefix(self._reviewed),
                "suffix": self._reviewed.suffix,
                "failures": self._reviewed.failures,
                "edits": every,
                **self._reviewed.steps(),
            }
            return b'{"media":' + self._media + b"," + _json(rest)[1:]

    def apply(self, request: Any) -> dict[str, Any]:
        """Apply an edit durably. Each change names in `was` the edit that it was based on. Raises
        Outdated, EditRefused, EnvironmentFault."""
        with self._lock:
            reviewed = self.reviewed
            try:
                check(request, {"id": text})
            except ShapeError as error:
                raise EditRefused(str(error)) from error
            if request["id"] not in reviewed.journal.edits.ids:
                self._check_base(reviewed, request)
            answer = reviewed.apply(request)
            if answer["edits"]:
                self._count += 1
                self._changed |= dict.fromkeys(answer["edits"], self._count)
            return {**answer, "revision": f"{self._session}-{self._loads}-{self._count}"}

    def _check_base(self, reviewed: ReviewedCaptions, request: Any) -> None:
        if request.get("does") in (UNDO, REDO):
            found = reviewed.journal.edits
            last = found.done if request["does"] == UNDO else found.undone
            if request.get("of", "") != (last[-1]["id"] if last else ""):
                raise Outdated({})
            return
        now = reviewed.edits()
        changes = request.get("changes")
        older: dict[str, Any] = {}
        for change in changes if isinstance(changes, list) else ():
            if not isinstance(change, dict) or "was" not in change:
                raise EditRefused("the edit does not name the text that it is based on")
            of = change.get("of")
            edit = _edit(now.get(of, UNTOUCHED)) if isinstance(of, str) else None
            if edit is not None and change["was"] != edit:
                older[str(of)] = edit
        if older:
            raise Outdated(older)

    def history(self) -> list[dict[str, Any]]:
        """Return the last actions in force, the newest first."""
        with self._lock:
            done = self.reviewed.journal.edits.done
            return [
                {
                    "id": deed["id"],
                    "time": deed["time"],
                    "does": deed["does"],
                    "count": len(deed["changes"]),
                    "of": deed["changes"][0].get("media_path", "") if deed["changes"] else "",
                }
                for deed in reversed(done[-HISTORY:])
            ]

    def tops(self) -> dict[str, str]:
        """Return the ids of the actions that undo and redo would take."""
        with self._lock:
            edits = self.reviewed.journal.edits
            pair = (("undo", edits.done), ("redo", edits.undone))
            return {name: str(of[-1]["id"]) if of else "" for name, of in pair}


def _prefix(reviewed: ReviewedCaptions) -> str:
    words = reviewed.record["plan"].get("words") or {}
    return f"{words['trigger']}, {reviewed.prefix}" if words.get("trigger") else reviewed.prefix


def _edit(edit: Edit) -> dict[str, Any]:
    return {"caption": edit.caption, "review": edit.review}


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _stamp(path: Path) -> Stamp | None:
    try:
        return stamp_of(path)
    except (OSError, PenstockError):
        return None

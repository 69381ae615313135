"""Holds the captions of one run's folder for the page. It reads files again when they change. Each
edit has a revision, so that other tabs see it, and no edit replaces a text it was not based on."""

import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from artifacts.disk.files import json_text, write_text
from artifacts.disk.json_records import read_jsonl_file
from artifacts.disk.json_shapes import Json
from artifacts.disk.json_types import Count, Text
from artifacts.disk.stamps import Stamp, stamp_of
from artifacts.errors import PenstockError, UsageError
from artifacts.schema import values_of
from artifacts.texts.edits import REDO, UNDO, UNTOUCHED
from flows.commands.review.captions import ReviewedCaptions
from flows.commands.review.folder_captions import EditRefused
from flows.commands.review.folder_texts import write_texts
from flows.commands.review.seen_captions import Trained, seen_in
from flows.commands.sift.marks import CHOICES, CHOICES_FILE, LeftOutRow, choices_in
from flows.core.options.training import LEAST
from flows.core.options.vectors import PLACE
from flows.interfaces.serve.refusals import json_bytes
from flows.outputs.folder.foreign_files import LEFT_OUT_FILE, MARKS_FILE
from flows.outputs.record.rounds import rounds_in, summary_json

SHOWN_GROUPS, SHOWN_MEMBERS, SHOWN_LEFT_OUT = 100, 12, 500
"""Most groups of copies that the page shows of a sift run, members of each, and files left out."""
FILES = ("media.jsonl", "captions.jsonl", "failures.jsonl")
TOGETHER = 500
"""Media that are sent as one piece."""
NUMBER = re.compile("[0-9]{1,9}")
"""A number in a request, of a medium or of an edit."""
HISTORY = 200
"""Largest number of actions that the page lists."""


BASE = ("caption", "review")
"""Fields of an edit that another one is based on."""


class Outdated(Exception):
    """An edit that is based on an older text. `now` has the edits in force."""

    def __init__(self, now: dict[str, Json]) -> None:
        super().__init__("somebody changed it meanwhile")
        self.now = now


class RunCaptions:
    """The captions of one folder. Its methods may be called on several threads."""

    def __init__(
        self,
        out: Path,
        order: str = "source",
        is_learning: Callable[[], bool] = bool,
        *,
        store: str = "",
        trust: bool = False,
    ) -> None:
        """Take the folder of a run, the order in which its captions are shown at first, and whether
        a model is learning from them. `store` and `trust` are as in `belief_in`."""
        self.out = out
        self._open = partial(ReviewedCaptions, out, store, trust=trust, shows_all=True)
        self._order, self._is_learning = order, is_learning
        self._is_released = False
        self._lock = threading.RLock()
        self._reviewed: ReviewedCaptions | None = None
        self._stamps: tuple[Stamp | None, ...] = ()
        self._media: list[bytes] = []
        self._session = secrets.token_hex(4)
        self._loads = 0
        self._count = 0
        self._changed: dict[str, int] = {}
        """Key of a caption → number of its last edit."""
        self._numbers: dict[str, int] = {}
        """Key of a caption → number of its medium."""

    def close(self) -> None:
        """Close the journal, so that others can write it."""
        with self._lock:
            if self._reviewed is not None:
                self._reviewed.close()
            self._reviewed, self._is_released = None, False

    @property
    def reviewed(self) -> ReviewedCaptions:
        """Return the captions as they are on the disk now. Raises PenstockError."""
        with self._lock:
            self._load()
            if self._reviewed is None:
                raise UsageError(f"{self.out} has no captions yet", hint="Wait for the run")
            return self._reviewed

    def follow_learning(self) -> None:
        """Leave the journal to a model that learns, and take it back afterwards."""
        with self._lock:
            learning = self._is_learning()
            if self._reviewed is None or learning == self._is_released:
                return
            self._is_released = learning
            if learning:
                self._reviewed.release()
            else:
                self._reviewed.take_back()
                self._stamps = ()

    def _load(self) -> None:
        self.follow_learning()
        stamps = tuple(_stamp(self.out / name) for name in FILES)
        if stamps == self._stamps or not any(stamps):
            return
        if self._reviewed is None:
            try:
                self._reviewed = self._open()
            except UsageError:
                return  # nothing is written yet
        else:
            self._reviewed.load()
        self._stamps = stamps
        self._loads += 1
        media, groups = self._reviewed.folder.media, groups_in(self.out)
        for medium in media if groups else ():
            if (group := groups.get(self._reviewed.folder.places[medium["number"]])) is not None:
                for row in medium["captions"]:
                    row["group"] = group
        self._numbers = {row["key"]: m["number"] for m in media for row in m["captions"]}
        pieces: Iterator[Any] = (media[at : at + TOGETHER] for at in range(0, len(media), TOGETHER))
        self._media = [json_bytes(piece)[1:-1] for piece in pieces]
        media.clear()  # most of what 50,000 captions take; the page has it

    def place(self, number: int) -> str:
        """Return the path or address of a medium; empty if there is none."""
        with self._lock:
            if self._reviewed is None:
                self._load()
            return "" if self._reviewed is None else self._reviewed.folder.place_shown(number)

    def paths(self, keys: list[str]) -> dict[str, tuple[str, float, str]]:
        """Return medium, start and name of the prompt of these captions. Raises EditRefused."""
        with self._lock:
            reviewed = self.reviewed
            if not keys or not all(key in reviewed.folder.rows for key in keys):
                raise EditRefused("these captions are no longer in the run: reload the page")
            rows = {key: reviewed.folder.rows[key] for key in keys}
            places = {key: reviewed.folder.places[self._numbers[key]] for key in keys}
            return {key: (places[key], row["start"], row["name"]) for key, row in rows.items()}

    def body(self, since: str) -> list[bytes]:
        """Return what changed since a revision, as pieces of JSON: everything, only edits, or
        nothing. Raises PenstockError."""
        with self._lock:
            self._load()
            reviewed = self._reviewed
            revision = f"{self._session}-{self._loads}-{self._count}"
            head: dict[str, Json] = {"revision": revision, "name": self.out.absolute().name}
            if reviewed is None:
                return [
                    json_bytes({**head, "media": [], "failures": [], "edits": {}, "empty": True})
                ]
            base, _, number = since.rpartition("-")
            if base == f"{self._session}-{self._loads}" and NUMBER.fullmatch(number):
                seen = int(number)
                now = reviewed.edits() if seen < self._count else {}
                changed = [key for key, last in self._changed.items() if last > seen]
                head["edits"] = {key: values_of(now.get(key, UNTOUCHED)) for key in changed}
                return [json_bytes({**head, **reviewed.steps()})]
            rest = {
                **head,
                "prefix": "".join(reviewed.folder.fixed.prefixes),
                "suffix": reviewed.folder.fixed.suffix,
                "failures": reviewed.folder.failures,
                "order": self._order,
                "unused": reviewed.unused(),
                "learns_from": LEAST,
                "texts": reviewed.folder.has_texts,
                "rounds": [*summary_json(rounds_in(self.out))],
                "edits": {key: values_of(edit) for key, edit in reviewed.edits().items()},
                **reviewed.steps(),
            }
            media = [piece for medium in self._media for piece in (b",", medium)][1:]
            return [b'{"media":[', *media, b"],", json_bytes(rest)[1:]]

    def seen(self, wanted: str, trained: Trained) -> dict[str, Json]:
        """Return the captions that a filter finds by what trainers do not see of them. It may take
        minutes, in which edits go on. Raises PenstockError."""
        with self._lock:
            reviewed = self.reviewed
            folder, edits = reviewed.folder, reviewed.edits()
        return seen_in(self.out, folder, edits, trained, wanted)

    def write_texts(self) -> str | None:
        """Write changed captions into the texts beside their media, and return what came of it;
        None: the captions are those of a run. Raises PenstockError."""
        with self._lock:
            reviewed = self.reviewed
            return write_texts(reviewed) if reviewed.folder.has_texts else None

    def apply(self, request: Json) -> dict[str, Json]:
        """Apply an edit durably. Each change names in `was` the edit that it was based on. Raises
        Outdated, EditRefused, EnvironmentFault."""
        with self._lock:
            reviewed = self.reviewed
            if not isinstance(request, dict) or not isinstance(request.get("id"), str):
                raise EditRefused("it has no id")
            if request["id"] not in reviewed.journal.edits.ids:
                self._check_base(reviewed, request)
            answer = reviewed.apply(request)
            if answer["edits"]:
                self._count += 1
                self._changed |= dict.fromkeys(answer["edits"], self._count)
            return {**answer, "revision": f"{self._session}-{self._loads}-{self._count}"}

    def _check_base(self, reviewed: ReviewedCaptions, request: Mapping[str, Json]) -> None:
        if request.get("does") in (UNDO, REDO):
            if request.get("of", "") != self.tops()[str(request["does"])]:
                raise Outdated({})
            return
        now = reviewed.edits()
        changes = request.get("changes")
        older: dict[str, Json] = {}
        for change in changes if isinstance(changes, list) else ():
            if not isinstance(change, dict) or "was" not in change:
                raise EditRefused("the edit does not name the text that it is based on")
            of = change.get("of")
            edit = values_of(now.get(of, UNTOUCHED)) if isinstance(of, str) else None
            was = change["was"] if isinstance(change["was"], dict) else {}
            if edit is not None and any(was.get(n, edit) != edit[n] for n in BASE):
                older[str(of)] = edit
        if older:
            raise Outdated(older)

    def history(self) -> dict[str, Json]:
        """Return the last actions in force, the newest first, and what undo and redo would take."""
        with self._lock:
            done = self.reviewed.journal.edits.done
            actions: list[Json] = [
                {
                    "id": deed.id,
                    "time": deed.time,
                    "does": deed.does,
                    "count": len(deed.changes),
                    "of": next((change.media_path for change in deed.changes), ""),
                }
                for deed in reversed(done[-HISTORY:])
            ]
            return {"history": actions, "tops": self.tops()}

    def tops(self) -> dict[str, str]:
        """Return the ids of the actions that undo and redo would take."""
        with self._lock:
            stepped = self.reviewed.journal.edits.stepped
            targets = {does: stepped(does) for does in (UNDO, REDO)}
            return {does: target.id if target else "" for does, target in targets.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyRow:
    """A file with marks, and the group of copies that it is in."""

    path: str
    media_path: Text = ""
    digest: str = ""
    group: Count | None = None
    duplicate: Count | None = None
    """0: the best of its group."""


def groups_in(out: Path) -> dict[str, int]:
    """Return path → number of its group of copies, if the run sifted its media first; empty if the
    marks are not there, or not as `penstock sift` writes them."""
    with suppress(PenstockError):
        rows = read_jsonl_file(CopyRow, out / PLACE / MARKS_FILE, "Run the same command again")
        return {row.path: row.group for row in rows if row.group is not None}
    return {}


def sifted_in(out: Path) -> dict[str, Json]:
    """Return the largest groups of copies in the folder of a sift run, what is kept of each first,
    and the first files that it left out, each with what a person chose. Raises EnvironmentFault."""
    again, chosen = "Run the same command again", choices_in(out)
    left = read_jsonl_file(LeftOutRow, out / LEFT_OUT_FILE, again)
    why = {row.path: row.why for row in left}
    groups, rows = dict[int, list[dict[str, Json]]](), dict[str, dict[str, Json]]()
    for row in read_jsonl_file(CopyRow, out / MARKS_FILE, again):
        choice = chosen.get((row.path, row.digest), "")
        rows[row.path] = {**values_of(row), "why": why.get(row.path, ""), "choice": choice}
        if row.group is not None:
            groups.setdefault(row.group, []).append(rows[row.path])
    for members in groups.values():
        members.sort(key=lambda row: (bool(row["why"]), row["duplicate"] or 0))
    largest = sorted(groups.values(), key=len, reverse=True)[:SHOWN_GROUPS]
    return {
        "count": len(groups),
        "groups": [members[:SHOWN_MEMBERS] for members in largest],
        "sizes": [len(members) for members in largest],
        "left_out": [rows[row.path] for row in left[:SHOWN_LEFT_OUT] if row.path in rows],
        "left": len(left),
    }


def choose(out: Path, path: str, choice: str) -> dict[str, Json]:
    """Note what a person decided of a file of a sift run: `best`, `keep`, or nothing. The next run
    applies it. Return what `sifted_in` does. Raises UsageError, EnvironmentFault."""
    rows = read_jsonl_file(CopyRow, out / MARKS_FILE, "Run the same command again")
    digest = next((row.digest for row in rows if row.path == path), "")
    if not digest or choice not in ("", *CHOICES):
        raise UsageError("this file was not marked by that run", hint="Reload the page")
    of = choices_in(out) | {(path, digest): choice}
    kept = ({"path": at, "digest": held, "choice": one} for (at, held), one in of.items())
    lines = (json_text(choice) for choice in kept if choice["choice"])
    write_text(out / CHOICES_FILE, (line + "\n" for line in lines))
    return sifted_in(out)


def _stamp(path: Path) -> Stamp | None:
    try:
        return stamp_of(path)
    except (OSError, PenstockError):
        return None

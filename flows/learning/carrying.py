"""Keeps the decisions of a run under the words of another adapter, in its journal and store."""

from collections.abc import Mapping
from typing import Any

from artifacts.edits import UNTOUCHED, WORDS, Edit, Edits, changes_of, key_of
from artifacts.errors import EnvironmentFault, PenstockError
from artifacts.plurals import counted
from flows.learning.decisions import carried, deed_of, names
from flows.pipelines import CAPTION
from flows.reviewing.captions import ReviewedCaptions


class Uncaptioned(PenstockError):
    """Raised if the new adapter wrote nothing for a medium whose caption a person decided on."""


def carry(old: ReviewedCaptions, new: ReviewedCaptions, number: int) -> tuple[int, int]:
    """Bind each decision to the new caption of its chunk, in one action of the journal. Return the
    numbers of decisions with new words, and of captions with new words. A second call changes
    nothing, unless a decision changed between. If a decided caption has no new one, raises
    Uncaptioned where the model failed, and EnvironmentFault where the medium is missing."""
    words = {new.chunks[key]: row[WORDS] for key, row in new.rows.items()}
    edits, journal = old.edits(), old.journal.proved
    known = {**new.edits(), **journal.now}
    when = _last_action(journal)
    kept, rows, missing = dict[str, Edit](), list[Mapping[str, Any]](), list[str]()
    changed = decided = 0
    for key, row in old.rows.items():
        text, edit = words.get(old.chunks[key]), edits.get(key)
        if text is None:
            missing += [row["media_path"]] if edit not in (None, UNTOUCHED) else []
            continue
        now = key_of(*old.chunks[key], text)
        if now == key:
            continue
        changed += 1
        decided += edit not in (None, UNTOUCHED)
        if edit is None or now in kept:
            continue
        # Of two decisions on one chunk, the later one counts.
        is_later = now not in known or when.get(key, -1) > when.get(now, -1)
        moved = carried(edit, row[WORDS], text)
        if is_later and moved != known.get(now, UNTOUCHED):
            kept[now] = moved
            rows.append({**row, "key": now, WORDS: text})
    if missing:
        message = (
            f"{counted(len(missing), 'corrected or accepted caption')} would be lost, because the "
            f"new adapter wrote none: {names(missing)}"
        )
        for each in new.failures:
            if each["stage"] == CAPTION[-1].name and each["media_path"] in missing:
                raise Uncaptioned(message, hint=f"Of one it says: {each['message']}")
        raise EnvironmentFault(
            message,
            hint="Run the same command again; `penstock caption` leaves out files that are gone",
        )
    if kept:
        old.add(deed_of(f"learn, round {number}", changes_of(rows, kept), round=number))
    return decided, changed


def _last_action(journal: Edits) -> dict[str, int]:
    """Return caption key → number of the last action in force that changed it."""
    return {
        change["of"]: at
        for at, deed in enumerate(journal.done)
        for change in deed.get("changes", ())
    }

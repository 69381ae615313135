"""Gathers the decisions of a run's captions, from its journal, its store and journals of copies."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from artifacts.edits import (
    ACCEPTED,
    DIGITS,
    EDITS,
    REJECTED,
    UNTOUCHED,
    WORDS,
    Edit,
    key_of,
    read_journal,
)
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.keys import digest_of
from flows.machine.versions import now
from flows.results.rounds import Round
from flows.reviewing.captions import ReviewedCaptions

Chunk = tuple[str, str, str]
"""Features, name of the prompt, and prompt of a caption, whatever its words."""


def chunk_key(chunk: Chunk) -> str:
    """Return the identity of a chunk under a prompt."""
    return digest_of([*chunk])[:DIGITS]


@dataclass(kw_only=True, slots=True)
class Decisions:
    """The decisions that are in force for a run's captions."""

    examples: list[dict[str, Any]] = field(default_factory=list)
    """Captions that a person corrected or accepted, in the form of `round.json`."""
    adopted: dict[str, Edit] = field(default_factory=dict)
    """Caption key → edit that only journals of copies have."""
    differing: list[str] = field(default_factory=list)
    """Names of captions on which two journals differ; they are no examples."""


def decisions_of(
    captions: ReviewedCaptions, journals: Sequence[str], rounds: Sequence[Round]
) -> Decisions:
    """Return the decisions of a run, with those of other journals. A caption that counted as
    corrected in a round stays one when a model has learned to write it. Raises UsageError,
    EnvironmentFault."""
    edits, others = captions.edits(), [_edits_in(captions, Path(path)) for path in journals]
    found = Decisions()
    corrected = {
        (each["key"], each["caption"])
        for round_ in rounds
        for each in (*round_["examples"], *round_["held_out"])
        if each["corrected"]
    }
    for key, row in captions.rows.items():
        words = row[WORDS]
        given = [edits[key]] if edits.get(key, UNTOUCHED) != UNTOUCHED else []
        of_others = [other[key] for other in others if other.get(key, UNTOUCHED) != UNTOUCHED]
        every = given + of_others
        if len({_verdict(edit, words) for edit in every}) > 1:
            found.differing.append(_name(row))
            continue
        if not every:
            continue
        if not given:
            found.adopted[key] = every[0]
        if every[0].review == REJECTED:
            continue
        text = every[0].caption or words
        example = _example(captions.chunks[key], row, text)
        example["medium"] = captions.medium_of[key]
        example["corrected"] = (
            every[0].caption is not None or (example["key"], example["caption"]) in corrected
        )
        if example["caption"]:
            found.examples.append(example)
    return found


def _example(chunk: Chunk, row: Mapping[str, Any], text: str) -> dict[str, Any]:
    features, name, prompt = chunk
    return {
        "key": chunk_key(chunk),
        "features": features,
        "name": name,
        "prompt": prompt,
        "caption": text.strip(),
        "media_path": row["media_path"],
        "start": row["start"],
    }


def _verdict(edit: Edit, words: str) -> str | None:
    """Return the text that an edit decides on; None: it rejects the caption."""
    return None if edit.review == REJECTED else edit.caption or words


def _name(row: Mapping[str, Any]) -> str:
    at = f" at {row['start']:g} s" if row["end"] else ""
    return f"{row['media_path']}{at}"


def _edits_in(captions: ReviewedCaptions, path: Path) -> dict[str, Edit]:
    """Return caption key → edit of a journal that was begun in a copy of the folder, also when the
    captions had other words then. Raises UsageError, EnvironmentFault."""
    path = path / EDITS if path.is_dir() else path
    try:
        journal = read_journal(path)
    except FileNotFoundError as error:
        raise UsageError(f"--journal {path}: no such file", hint="Give an edits.jsonl") from error
    except EnvironmentFault as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        raise UsageError(
            f"--journal {path} is not an edits.jsonl ({error.__cause__})",
            hint="Give the edits.jsonl of a copy of the folder",
        ) from error
    keys = defaultdict[tuple[str, float], list[str]](list)
    for key, row in captions.rows.items():
        keys[row["media_path"], row["start"]].append(key)
    found: dict[str, Edit] = {}
    for change in (each for deed in journal.done for each in deed.get("changes", ())):
        place = (change["media_path"], change["start"])
        edit = Edit(caption=change["caption"], review=change["review"])
        for key in {change["of"], *keys[place]} & captions.rows.keys():
            now = captions.rows[key][WORDS]
            then = now if key == change["of"] else change[WORDS]
            if key_of(*captions.chunks[key], then) == change["of"]:
                found[key] = carried(edit, then, now)
    return found


def carried(edit: Edit, then: str, now: str) -> Edit:
    """Return the same decision under other words of the model: the person's text stays, or the text
    that the person accepted. Words that equal it are accepted, and rejected ones stay rejected."""
    if edit.caption is None and edit.review != ACCEPTED:
        return edit
    text = then if edit.caption is None else edit.caption
    if text != now:
        return Edit(caption=text, review=edit.review)
    return Edit(review=edit.review or ACCEPTED)


def deed_of(does: str, changes: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Return a new action for a journal."""
    return {"id": uuid4().hex, "time": now(), "does": does, "changes": [*changes], **more}


def names(found: Iterable[str], most: int = 5) -> str:
    """Return the first of these names in one line."""
    every = list(found)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more

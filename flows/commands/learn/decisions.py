"""Gathers the user's decisions on a run's captions, and carries them over to a new adapter's.

Decisions come from the run's journal, its store and the journals of copies. When another adapter
has written new captions, the decisions are kept under its words, in the run's journal and store.
Before a round of learning begins, the module finds what the round needs and checks it.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

from artifacts.digests import digest_of
from artifacts.disk.paths import folder_named
from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.records.keys import content_key, hash_file
from artifacts.records.provenance import ROUND
from artifacts.texts.captions import Failure
from artifacts.texts.edits import (
    ACCEPTED,
    DIGITS,
    EDITS,
    REJECTED,
    UNTOUCHED,
    WORDS,
    Action,
    CaptionChange,
    Edit,
    ReviewedRow,
    key_of,
    read_journal,
)
from artifacts.wording import counted
from flows.commands.review.captions import ReviewedCaptions
from flows.commands.tune.training_data import Example
from flows.core.job.away import AwayMedia
from flows.core.machine.versions import now
from flows.core.media.media_file import MediaFile, Selection
from flows.core.media.sources import find_media
from flows.core.options.training import LearnConfig, RecordedRun
from flows.core.pipelines import CAPTION
from flows.outputs.folder.trust import own_belief
from flows.outputs.record.recorded_command import moved_with
from flows.outputs.record.rounds import (
    ADAPTER,
    CHOSEN,
    TRAINED,
    Round,
    RoundExample,
    adapter_digest,
    missing_adapter,
    round_folder,
    unfinished,
    usable_rounds,
)

Chunk = tuple[str, str, str]
"""Features, name of the prompt, and prompt of a caption, whatever its words."""


def chunk_key(chunk: Chunk) -> str:
    """Return the identity of a chunk under a prompt."""
    return digest_of([*chunk])[:DIGITS]


@dataclass(kw_only=True, slots=True)
class Decisions:
    """The decisions that are in force for a run's captions."""

    examples: list[RoundExample] = field(default_factory=list)
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
    decisions = Decisions()
    corrected = {
        (example.key, example.caption)
        for round_ in rounds
        for example in (*round_.examples, *round_.held_out)
        if example.corrected
    }
    for key, row in captions.folder.rows.items():
        words = row[WORDS]
        given = [edits[key]] if edits.get(key, UNTOUCHED).is_decided else []
        of_others = [other[key] for other in others if other.get(key, UNTOUCHED).is_decided]
        every = given + of_others
        if len({_verdict(edit, words) for edit in every}) > 1:
            decisions.differing.append(_name(row))
            continue
        if not every:
            continue
        if not given:
            decisions.adopted[key] = every[0]
        if every[0].review == REJECTED:
            continue
        text = every[0].caption or words
        features, name, prompt = chunk = captions.folder.captions[key].chunk
        decision, text = chunk_key(chunk), text.strip()
        if text:
            example = RoundExample(
                key=decision,
                features=features,
                name=name,
                prompt=prompt,
                caption=text,
                media_path=row["media_path"],
                start=row["start"],
                medium=captions.folder.captions[key].medium,
                corrected=every[0].caption is not None or (decision, text) in corrected,
            )
            decisions.examples.append(example)
    return decisions


def _verdict(edit: Edit, words: str) -> str | None:
    """Return the text that an edit decides on; None: it rejects the caption."""
    return None if edit.review == REJECTED else edit.caption or words


def _name(row: ReviewedRow) -> str:
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
    for key, row in captions.folder.rows.items():
        keys[row["media_path"], row["start"]].append(key)
    edits: dict[str, Edit] = {}
    for change in (change for action in journal.done for change in action.changes):
        place = (change.media_path, change.start)
        edit = Edit.of(change)
        for key in {change.of, *keys[place]} & captions.folder.rows.keys():
            now = captions.folder.rows[key][WORDS]
            then = now if key == change.of else change.said
            if key_of(*captions.folder.captions[key].chunk, then) == change.of:
                edits[key] = carried(edit, then, now)
    return edits


def carried(edit: Edit, then: str, now: str) -> Edit:
    """Return the same decision under other words of the model: the person's text stays, or the text
    that the person accepted. Words that equal it are accepted, and rejected ones stay rejected."""
    if edit.caption is None and edit.review != ACCEPTED:
        return edit
    text = then if edit.caption is None else edit.caption
    if text != now:
        return replace(edit, caption=text)
    return Edit(review=edit.review or ("" if edit.unread else ACCEPTED))


def action_of(does: str, changes: tuple[CaptionChange, ...], number: int | None = None) -> Action:
    """Return an action of now; `number`: of the round that it belongs to."""
    return Action(id=uuid4().hex, time=now(), does=does, changes=changes, round=number)


def names(named: Iterable[str], most: int = 5) -> str:
    """Return the first of these names in one line."""
    every = list(named)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


class Uncaptioned(PenstockError):
    """Raised if the new adapter wrote nothing for a medium whose caption a person decided on."""


def carry(old: ReviewedCaptions, new: ReviewedCaptions, number: int) -> tuple[int, int]:
    """Bind each decision to the new caption of its chunk, in one action of the journal. Return the
    numbers of decisions with new words, and of captions with new words. A second call changes
    nothing, unless a decision changed between. If a decided caption has no new one, raises
    Uncaptioned where the model failed, and EnvironmentFault where the medium is missing."""
    words = {new.folder.captions[key].chunk: row[WORDS] for key, row in new.folder.rows.items()}
    edits, journal = old.edits(), old.journal.proved
    known = {**new.edits(), **journal.now}
    when = {change.of: at for at, action in enumerate(journal.done) for change in action.changes}
    kept, missing = dict[str, Edit](), list[str]()
    changed = decided = 0
    for key, row in old.folder.rows.items():
        text, edit = words.get(old.folder.captions[key].chunk), edits.get(key)
        if text is None:
            missing += [row["media_path"]] if edit not in (None, UNTOUCHED) else []
            continue
        now = key_of(*old.folder.captions[key].chunk, text)
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
    if missing:
        message = (
            f"{counted(len(missing), 'corrected or accepted caption')} would be lost, because the "
            f"new adapter wrote none: {names(missing)}"
        )
        for failure in new.folder.failures:
            if failure["stage"] == CAPTION[-1].name and failure["media_path"] in missing:
                raise Uncaptioned(message, hint=f"Of one it says: {failure['message']}")
        raise EnvironmentFault(
            message,
            hint="Run the same command again; `penstock caption` leaves out files that are gone",
        )
    if kept:
        old.add(action_of(f"learn, round {number}", new.folder.changes_of(kept), number))
    return decided, changed


def own_rounds(config: LearnConfig, run: RecordedRun, out: Path) -> tuple[RecordedRun, list[Round]]:
    """Return the run in the store that its captions came from, which may be another one than this
    process's default, and the rounds of its folder that are proved. Raises UsageError for a folder
    of another person, EnvironmentFault."""
    belief = own_belief(out, run.config.store, trust=config.trust_folder)
    own = replace(run, config=replace(run.config, store=run.config.store or belief.store))
    return own, usable_rounds(out, belief.proof(ROUND))


def previous_adapter(run: RecordedRun, out: Path) -> str:
    """Return the adapter of a run's captions; empty: none. One in the run's folder is returned
    relative to it, because the folder may have been moved or copied. Raises UsageError, and
    EnvironmentFault if it is gone."""
    if not run.config.adapter:
        return ""
    adapter = folder_named(run.config.adapter, "adapter")
    adapter = moved_with(adapter, folder_named(run.config.out, "out"), out)
    return _found(out, str(adapter.relative_to(out) if adapter.is_relative_to(out) else adapter))


def refuse_missing_media(run: RecordedRun, captions: ReviewedCaptions) -> None:
    """Raise EnvironmentFault if media of the run are away, or if its sources lack corrected or
    accepted media, which could not be captioned again. A file that was renamed counts as there."""
    media, failures = found_media(run)
    if away := AwayMedia(
        replace(run.config, out=str(captions.out), replace=False), media, failures
    ):
        raise away.fault()
    readable = {f.media_path for f in media if f.remote is not None or os.access(f.path, os.R_OK)}
    edits, rows = captions.edits(), captions.folder.rows
    missing = {
        row["media_path"]: captions.folder.captions[key].medium
        for key, row in rows.items()
        if row["media_path"] not in readable
        and (edit := edits.get(key, UNTOUCHED)) != UNTOUCHED
        and edit.review != REJECTED
    }
    known = {row["media_path"] for row in rows.values()}
    new = [f for f in media if missing and f.remote is None and f.media_path in readable - known]
    contents = {content_key(hash_file(f.path), f.kind) for f in new}
    if gone := [name for name, content in missing.items() if content not in contents]:
        raise EnvironmentFault(
            f"{counted(len(gone), 'file')} with corrected or accepted captions cannot be read: "
            f"{names(sorted(gone))}",
            hint="Restore them where `penstock caption` read them; or, if they were deleted, run "
            "the same `penstock caption` again first",
        )


def found_media(run: RecordedRun) -> tuple[list[MediaFile], list[Failure]]:
    """Return the media files that the sources of a run name now, and what was not found."""
    config = run.config
    selection = Selection(recursive=config.recursive, extensions=config.extensions)
    return find_media(config.sources, selection, config.limit, names=config.prompts)


def with_media(
    run: RecordedRun, examples: Sequence[Example]
) -> tuple[list[Example], tuple[str, ...]]:
    """Return the examples of a round with the paths of their media, and these media as sources. If
    several files have one name, all are sources, and the example keeps the name."""
    files = defaultdict[Path, dict[Path, str]](dict)
    for file in found_media(run)[0]:
        files[Path(file.media_path)][file.path] = file.remote.address if file.remote else file.place
    named = {example.path: files[example.path] for example in examples}
    only = {name: next(iter(of)) for name, of in named.items() if len(of) == 1}
    sources = tuple(source for of in named.values() for source in of.values())
    return [replace(e, path=only.get(e.path, e.path)) for e in examples], sources


def left_round(out: Path, rounds: Sequence[Round]) -> Round | None:
    """Return the round that a killed process left; None if all ended. Raises EnvironmentFault if
    the adapter that it still needs is gone."""
    round_ = unfinished(rounds)
    if round_ is not None and round_.phase == TRAINED:
        _found(out, round_.previous)
    if round_ is not None and round_.phase != CHOSEN:
        folder = round_folder(out, round_.round)
        if adapter_digest(folder / ADAPTER) != round_.trained:
            raise EnvironmentFault(
                f"{folder / ADAPTER} is not as this round trained it",
                hint=f"Restore it, or delete {folder} to leave the round out",
            )
    return round_


def _found(out: Path, adapter: str) -> str:
    """Return the adapter of a run's captions. Raises EnvironmentFault if it is gone."""
    if missing := missing_adapter(out, adapter):
        raise EnvironmentFault(
            f"{missing}: no such file, but its adapter made the captions in {out}",
            hint="Restore its folder, or run `penstock caption` into the same --out without "
            "--adapter or with another one; then learn",
        )
    return adapter

"""Finds what a round needs, and checks it before a round begins."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from artifacts.edits import REJECTED, UNTOUCHED
from artifacts.errors import EnvironmentFault
from artifacts.keys import content_key, hash_file
from artifacts.paths import folder_named
from artifacts.plurals import counted
from artifacts.signing import ROUND
from flows.learning.decisions import names
from flows.media.example import Example
from flows.media.media_files import MediaFile, Selection
from flows.media.sources import find_media
from flows.options.learn import LearnConfig, RecordedRun
from flows.results.recorded_command import moved_with
from flows.results.rounds import (
    ADAPTER,
    CHOSEN,
    TRAINED,
    Round,
    adapter_digest,
    missing_adapter,
    round_folder,
    unfinished,
    usable_rounds,
)
from flows.results.trust import own_belief
from flows.reviewing.captions import ReviewedCaptions


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
    """Raise EnvironmentFault if the run's sources lack corrected or accepted media, which could not
    be captioned again. A file that was renamed counts as there."""
    media = media_of(run)
    found = {f.media_path for f in media if f.far is not None or os.access(f.path, os.R_OK)}
    edits, rows = captions.edits(), captions.rows
    missing = {
        row["media_path"]: captions.medium_of[key]
        for key, row in rows.items()
        if row["media_path"] not in found
        and (edit := edits.get(key, UNTOUCHED)) != UNTOUCHED
        and edit.review != REJECTED
    }
    known = {row["media_path"] for row in rows.values()}
    new = [f for f in media if missing and f.far is None and f.media_path in found - known]
    contents = {content_key(hash_file(f.path), f.kind) for f in new}
    if gone := [name for name, content in missing.items() if content not in contents]:
        raise EnvironmentFault(
            f"{counted(len(gone), 'file')} with corrected or accepted captions cannot be read: "
            f"{names(sorted(gone))}",
            hint="Restore them where `penstock caption` read them; or, if they were deleted, run "
            "the same `penstock caption` again first",
        )


def media_of(run: RecordedRun) -> list[MediaFile]:
    """Return the media files that the sources of a run name now."""
    config = run.config
    selection = Selection(recursive=config.recursive, extensions=config.extensions)
    return find_media(config.sources, selection, config.limit, names=config.prompts)[0]


def with_media(
    run: RecordedRun, examples: Sequence[Example]
) -> tuple[list[Example], tuple[str, ...]]:
    """Return the examples of a round with the paths of their media, and these media as sources. If
    several files have one name, all are sources, and the example keeps the name."""
    files = defaultdict[Path, dict[Path, str]](dict)
    for file in media_of(run):
        files[Path(file.media_path)][file.path] = file.far.address if file.far else file.place
    named = {each.path: files[each.path] for each in examples}
    only = {name: next(iter(of)) for name, of in named.items() if len(of) == 1}
    sources = tuple(source for of in named.values() for source in of.values())
    return [replace(e, path=only.get(e.path, e.path)) for e in examples], sources


def left_round(out: Path, rounds: Sequence[Round]) -> Round | None:
    """Return the round that a killed process left; None if all ended. Raises EnvironmentFault if
    the adapter that it still needs is gone."""
    round_ = unfinished(rounds)
    if round_ is not None and round_["phase"] == TRAINED:
        _found(out, round_["previous"])
    if round_ is not None and round_["phase"] != CHOSEN:
        folder = round_folder(out, round_["round"])
        if adapter_digest(folder / ADAPTER) != round_["trained"]:
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

"""Refuses runs that would take an output folder from its owner, or rows of media from it.

An output folder has one owner, the command that its marker names. `media.jsonl` has the media of
its rows and data sets. Whether a run drops any is told by real paths, and not by the words that
named them.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from artifacts.errors import UsageError
from artifacts.names import SUFFIXES
from artifacts.paths import RealPaths
from artifacts.plurals import counted
from artifacts.regular_files import open_regular
from artifacts.remote.addresses import is_address, unsigned
from artifacts.shards import DATASET
from artifacts.subtitles import WRITERS
from artifacts.tables import TABLES
from flows.job.prepare import out_folder
from flows.media.media_files import MediaFile, Selection
from flows.media.sources import find_media
from flows.options.commands import RunOptions
from flows.options.text import OutputOptions, OwnerOptions, TrustOptions
from flows.pipelines import EMBED, LABEL, SIFT, Pipeline
from flows.results.foreign_files import refuse_replacing
from flows.results.marker import DATA_SET_MEDIA, MARKER, MEDIA, own_marker, read_marker
from flows.results.outputs import FOLDERS
from flows.results.report.media import path_of

PIPELINES: Mapping[str, Pipeline] = {"embed": EMBED, "label": LABEL, "sift": SIFT}


def refuse_owned(config: RunOptions, command: str) -> None:
    """Refuse a run into the folder of another command or of a stranger, and one that would replace
    files that Penstock did not write. Reads no media. Raises UsageError, EnvironmentFault."""
    out = out_folder(config)
    if os.path.lexists(out / MARKER):
        owner = own_marker(out, config.store_url)
        if owner is None and TrustOptions.of(config).trust_folder:
            owner = read_marker(out)
        if owner is None:
            raise UsageError(
                f"{out} is the output folder of another user or machine, or was changed: its "
                f"{MARKER} is not signed for this one",
                hint="Give another --out, the --store of the run that wrote it, or trust it with "
                "--trust-folder",
            )
        if owner.command != command and not OwnerOptions.of(config).replace:
            raise UsageError(
                f"{out} is the output folder of `penstock {owner.command}`",
                hint=f"Give another --out, such as {out}/{command}, or --replace to take it over",
            )
    elif (owner_of_texts := _owner_of_texts(out)) is not None:
        raise UsageError(
            f"{out} holds texts that a run into {owner_of_texts} wrote",
            hint="Give another --out",
        )
    refuse_replacing(out, config, PIPELINES.get(command))


def refuse_loss(config: RunOptions, found: Sequence[MediaFile]) -> None:
    """Refuse a run that would drop rows of media that still exist and are not among the files that
    its sources name, or that would write texts into another run's folder. Raises UsageError."""
    out = out_folder(config)
    _refuse_texts_elsewhere(config, out, found[: config.limit])
    if OwnerOptions.of(config).replace:
        return
    lost = list(_lost(config, out, found))
    if lost:
        raise UsageError(
            f"{out} has rows of {counted(len(lost), 'file')} that these sources do not name, and "
            f"this run would drop them: {lost[0]}",
            hint="Name them too, give another --out, or --replace to drop them",
        )


def refuse_loss_by_sources(config: RunOptions) -> None:
    """Do the same before the sources are read, if the folder has any rows. Raises UsageError,
    EnvironmentFault."""
    if os.path.lexists(out_folder(config) / MEDIA):
        selection = Selection(recursive=config.recursive, extensions=config.extensions)
        refuse_loss(config, find_media(config.sources, selection)[0])


def _lost(config: RunOptions, out: Path, found: Sequence[MediaFile]) -> Iterator[str]:
    """Yield the paths and addresses of the media that the folder would lose."""
    named = {file.place for file in found}
    data_sets = [
        form for form in FOLDERS if form != DATASET or form in OutputOptions.of(config).format
    ]
    lists = (out / MEDIA, *(out / form / DATA_SET_MEDIA for form in data_sets))
    # A run that was killed may have left tables with rows that `captions.jsonl` has no more.
    has_tables = any((out / f"captions.{form}").exists() for form in TABLES)
    there = dict.fromkeys(
        place
        for path in lists
        for place, rows in _media_of(path)
        if (rows or has_tables) and place not in named
    )
    if not there:
        return
    real = RealPaths()
    named = {real.of(file.path) for file in found if file.far is None}
    for place in there:
        if is_address(place):
            if not _would_be_found(place, config):
                yield place
        elif os.path.exists(place) and real.of(place) not in named:
            yield place


def _media_of(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the path or address of each medium of a list, and the number of its rows."""
    with (
        contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError),
        open_regular(path) as file,
    ):
        for line in file:
            entry = json.loads(line)
            yield entry.get("address") or path_of(entry), entry["captions"]


def _would_be_found(address: str, config: RunOptions) -> bool:
    """Return whether the sources would have named an object if it still existed."""
    for source in map(unsigned, filter(is_address, config.sources)):
        inside = address.removeprefix(f"{source.rstrip('/')}/")
        if address == source or (inside != address and (config.recursive or "/" not in inside)):
            return True
    return False


def _refuse_texts_elsewhere(config: RunOptions, out: Path, found: Sequence[MediaFile]) -> None:
    """Refuse to write a text below the folder of another run. Raises UsageError."""
    outputs = OutputOptions.of(config)
    if outputs.beside or not set(outputs.format) & set(WRITERS):
        return
    first = {parent: f for f in found for parent in PurePosixPath(f.media_path).parents}
    for folder, file in first.items():
        if folder.name and os.path.lexists(out / folder / MARKER):
            raise UsageError(
                f"the text of {file.media_path} would be written into {out / folder}, which is the "
                "output folder of another run",
                hint="Give another --out",
            )


def _owner_of_texts(out: Path) -> Path | None:
    """Return the folder above whose run wrote texts of media into this one; None if there are
    none."""
    above = (parent for parent in out.parents if os.path.lexists(parent / MARKER))
    owners = ((parent, read_marker(parent)) for parent in above)
    writers = [p for p, owner in owners if owner and set(owner.outputs) & set(WRITERS)]
    if not writers:
        return None
    names = (name for _, _, files in os.walk(out) for name in files)
    return writers[0] if any(name.endswith(SUFFIXES) for name in names) else None

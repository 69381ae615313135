"""Refuses runs that would take an output folder from its owner, or rows of media from it.

An output folder has one owner, the command that its marker names. Real paths decide whether a run
drops media, and not the words that named them.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from artifacts.disk.faults import disk_faults
from artifacts.disk.names import SUFFIXES, Naming
from artifacts.disk.paths import RealPaths
from artifacts.disk.regular_files import open_regular
from artifacts.errors import UsageError
from artifacts.index.manifest import BOOK
from artifacts.remote.addresses import is_address, unsigned
from artifacts.texts.captions import WRITERS
from artifacts.texts.shards import DATASET
from artifacts.texts.tables import TABLES
from artifacts.wording import counted
from flows.core.job.prepare import out_folder
from flows.core.media.generated_files import GeneratedFiles
from flows.core.media.media_file import Selection
from flows.core.media.output_rows import path_at
from flows.core.media.sources import find_media
from flows.core.options.commands import RunOptions
from flows.core.options.formats import DATA_SET_MEDIA, EXACT, MEDIA
from flows.core.options.training import CommandRecord
from flows.outputs.clips import check_encoder
from flows.outputs.existing import FOLDERS
from flows.outputs.folder.foreign_files import refuse_replacing, set_edited_aside
from flows.outputs.marker import (
    MARKER,
    Marker,
    clip_sound,
    inputs_in,
    media_mode,
    own_marker,
    proved_digests,
    read_marker,
    trainer_models,
    write_marker,
)
from flows.outputs.record.record_writer import RecordWriter
from stages.models.adapter_modules import ADAPTER_CONFIG

UNMARKED = {
    BOOK: "`penstock index`",
    ADAPTER_CONFIG: "`penstock tune`",
    "config.json": "a checkpoint",
}
"""File → what its folder belongs to, though it has no marker."""


def refuse_taking(config: RunOptions, command: str) -> frozenset[str]:
    """Refuse a run into the folder of another command or of a stranger, one that would replace
    files that no run of the owner wrote, and one that would drop rows of media that still exist and
    that its sources do not name. Opens no medium. Return the outputs that the folder has or will
    have. Raises UsageError, EnvironmentFault."""
    out, replaces, owner = out_folder(config), config.groups.owner.replace, None
    if os.path.lexists(out / MARKER):
        owner = own_marker(out, config.store_url)
        if owner is None and config.groups.trust.trust_folder:
            owner = read_marker(out)
        if owner is None:
            raise UsageError(
                f"{out} is the output folder of another user or machine, or was changed: its "
                f"{MARKER} is not one that this user, or a run with this store, wrote",
                hint="Give another --out, the --store of the run that wrote it, or trust it with "
                "--trust-folder",
            )
        if owner.command != command and not replaces:
            raise UsageError(
                f"{out} is the output folder of `penstock {owner.command}`",
                hint=f"Give another --out, such as {out}/{command}, or --replace to take it over",
            )
    else:
        _refuse_inside(out)
    outputs = refuse_replacing(out, config, command, owner.outputs if owner is not None else ())
    if command == "caption" and media_mode(out, config) == EXACT:
        check_encoder(config.groups.outputs.format)
    if not replaces and (lost := _lost(config, out)):
        raise UsageError(
            f"{out} has rows of {counted(len(lost), 'file')} that these sources do not name, and "
            f"this run would drop them: {lost[0]}",
            hint="Name them too, give another --out, or --replace to drop them",
        )
    return outputs


def take(
    config: RunOptions,
    command: str,
    writer: RecordWriter,
    store: str,
    own: GeneratedFiles,
    media_paths: Iterable[str] = (),
) -> list[str]:
    """Mark the folder of a run, of whose media texts may be written there, before anything is. The
    run has the folder's lock; another may have written there since it was checked. Return notes
    about files that people edited, which keep another name. Raises UsageError,
    EnvironmentFault."""
    outputs, out = refuse_taking(config, command), out_folder(config)
    options = config.groups.outputs
    if WRITERS.keys() & options.format and not options.beside:
        fitting = Naming(out).fitting
        first = {p: path for path in media_paths for p in PurePosixPath(fitting(path)).parents}
        for folder, path in first.items():
            if folder.name and os.path.lexists(out / folder / MARKER):
                raise UsageError(
                    f"the text of {path} would be written into {out / folder}, which is the output "
                    "folder of another run",
                    hint="Give another --out",
                )
    recorded = writer.record.command or CommandRecord(words=(), folder="")
    before, claimed = own_marker(out, store), read_marker(out)
    digests = claimed.digests if claimed is not None else ()
    notes = [*set_edited_aside(out, config, command, own, digests)] if claimed is not None else []
    if before is None:  # the marker would vouch for it
        with disk_faults(out):
            (out / MEDIA).unlink(missing_ok=True)
    marker = Marker(
        command=command,
        words=recorded.words,
        folder=recorded.folder,
        store=store,
        media=media_mode(out, config),
        clip_sound=clip_sound(out, config),
        trainers=tuple(model.label for model in trainer_models(out, config).values()),
        outputs=tuple(sorted(outputs)),
        inputs=tuple(inputs_in(out, recorded.words, recorded.folder).values()),
        digests=() if before is None else proved_digests(out, before),
    )
    write_marker(out, marker)
    return notes


def _lost(config: RunOptions, out: Path) -> list[str]:
    """Return the paths and addresses of the media that the folder would lose."""
    forms = [f for f in FOLDERS if f != DATASET or f in config.groups.outputs.format]
    # A run that was killed may have left tables with rows that `captions.jsonl` has no more.
    tables = any((out / f"captions.{form}").exists() for form in TABLES)
    selection = Selection(recursive=config.recursive, extensions=config.extensions)
    is_named = _named_by(config, selection)
    held = dict.fromkeys(
        place
        for path in (out / MEDIA, *(out / form / DATA_SET_MEDIA for form in forms))
        for place, rows in _media_of(path)
        if (rows or tables) and not is_named(place)
    )
    existing = [place for place in held if is_address(place) or os.path.exists(place)]
    media, failures = find_media(config.sources, selection) if existing else ([], [])
    if not media:  # the run will fail, and write nothing
        return []
    real = RealPaths()
    named = {file.place if file.remote else real.of(file.path) for file in media}
    named.update(failure.media_path for failure in failures)
    return [p for p in existing if (p if is_address(p) else real.of(p)) not in named]


def _named_by(config: RunOptions, selection: Selection) -> Callable[[str], bool]:
    """Return a function that says of most media, by their names alone, whether the sources name
    them. It reads no list, and follows no links: finding 50,000 files takes seconds."""
    places = {
        unsigned(source) if is_address(source) else os.path.abspath(os.path.expanduser(source))
        for source in config.sources
    }
    folders = [f"{p.rstrip('/')}/" for p in places if is_address(p) or os.path.isdir(p)]
    patterns = [place.replace("**/", "*") for place in places if is_address(place)]

    def takes(inside: str) -> bool:
        is_read = (config.recursive or "/" not in inside) and "/." not in f"/{inside}"
        return is_read and selection.takes(inside)

    def is_named(place: str) -> bool:
        below = (place.removeprefix(folder) for folder in folders if place.startswith(folder))
        is_given = place in places or any(fnmatchcase(place, pattern) for pattern in patterns)
        return is_given or any(map(takes, below))

    return is_named


def _media_of(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the path or address of each medium of a list, and the number of its rows."""
    with (
        contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError),
        open_regular(path) as file,
    ):
        for line in file:
            entry = json.loads(line)
            yield entry.get("address") or path_at(entry["url"]), entry["captions"]


def _refuse_inside(out: Path) -> None:
    """Refuse a folder without an owner that another command keeps its work in: what `index build`,
    `tune` or `export` wrote, a data set or the logs of a run above, or texts of its media. Raises
    UsageError."""
    for parent in out.parents:
        if not os.path.lexists(parent / MARKER) or (run := read_marker(parent)) is None:
            continue
        is_output = out.relative_to(parent).parts[0] in {*run.outputs, *FOLDERS, "logs"}
        texts = (f for _, _, files in os.walk(out) for f in files if f.endswith(SUFFIXES))
        if is_output or (WRITERS.keys() & {*run.outputs} and any(texts)):
            raise UsageError(
                f"{out} holds what a run into {parent} wrote", hint="Give another --out"
            )
    for name, owner in UNMARKED.items():
        if (out / name).is_file():
            raise UsageError(f"{out} is a folder of {owner}", hint="Give another --out")

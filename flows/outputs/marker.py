"""The marker of an output folder: which command owns it, and what a note of this user proves.

An output folder has one owner. The place of the folder is not noted, so that a folder that was
moved stays the user's own.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from artifacts.digests import digest_of
from artifacts.disk.files import whole_file, write_text
from artifacts.disk.json_records import read_record
from artifacts.disk.json_shapes import parse
from artifacts.disk.regular_files import open_regular, read_text
from artifacts.errors import UsageError
from artifacts.records.provenance import MARKER as PURPOSE
from artifacts.records.provenance import Proof, anybody, note, proof_by
from artifacts.texts.trainer_models import TrainerModel, models_named
from artifacts.texts.trainers import WITH_SOUND
from flows.core.media.generated_files import digest_at
from flows.core.options.commands import RunOptions
from flows.core.options.formats import CAPTIONS, COPY, DATA_SET_MEDIA, EXACT, MEDIA

MARKER = ".penstock.json"
"""File of the marker, in an output folder."""
NOT_READ = ("--out", "--store")
"""Options that name folders whose content is not the user's words."""
TRIES = 3
"""Times that marker and files are read: a run may replace both in between."""
BYTES = 256 << 20
"""Largest marker, in bytes: that of about a million words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """The owner of an output folder, and what is believed of the folder."""

    command: str
    """Name of the command that owns the folder: `caption`, `label`, `embed` or `sift`."""
    words: tuple[str, ...] = ()
    """Words of the command that ran last; empty if it was no command line, or held credentials."""
    folder: str = ""
    """Working directory of that command."""
    store: str = ""
    """URL of its store."""
    media: str = EXACT
    """Mode of the media of its data sets."""
    clip_sound: str = COPY
    """Sound of the clips of its data sets, where a trainer reads it."""
    trainers: tuple[str, ...] = ()
    """Trainers whose data sets are set for a model, as `--trainer` names them."""
    outputs: tuple[str, ...] = ()
    """Files and folders in the folder that its runs wrote or will write, and formats of texts."""
    inputs: tuple[str, ...] = ()
    """Digests of what the command reads in the folder itself, such as an adapter."""
    digests: tuple[str, ...] = ()
    """Digests that `media.jsonl` and `captions.jsonl` may have: those of the files, and of what is
    about to replace them."""


def write_marker(out: Path, marker: Marker) -> None:
    """Write the marker of a folder, and note it before. Raises EnvironmentFault."""
    note(PURPOSE, value := asdict(marker), marker.store)
    # ASCII, because the name of a file need not be UTF-8.
    write_text(out / MARKER, [json.dumps(value, indent=1) + "\n"])


def read_marker(out: Path, proof: Proof = anybody) -> Marker | None:
    """Return what the marker of a folder says; None if there is none, or no usable one, or `proof`
    does not believe it."""
    path = out / MARKER
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        value = parse(read_text(path, BYTES))
        return read_record(Marker, value) if proof(value) else None
    except (OSError, ValueError, TypeError):
        return None


def own_marker(
    out: Path, store: str | None = None, files: Sequence[str] = (MEDIA,)
) -> Marker | None:
    """Return the marker of a folder if it was noted for this user, or in `store`, and names the
    digests of those of these files that are there; None if not. `store` is the URL of a store that
    the user named."""
    proof = proof_by(store, PURPOSE)
    for _ in range(TRIES):
        marker = read_marker(out, proof)
        existing = [out / name for name in files if os.path.lexists(out / name)]
        if marker is None or all(digest_at(path) in marker.digests for path in existing):
            return marker
    return None


def write_proved(out: Path, files: Mapping[str, Iterable[str]], store: str) -> None:
    """Write `media.jsonl`, and `captions.jsonl` before it in `files`, of an own folder. The marker
    has their digests first, so that the folder stays the user's own wherever the process is killed.
    The last file is replaced first: a killed run leaves no caption whose medium is unknown. Raises
    EnvironmentFault."""
    with contextlib.ExitStack() as stack:
        digests: list[str] = []
        for name, lines in files.items():
            file, digest = stack.enter_context(whole_file(out / name)), hashlib.sha256()
            for line in lines:
                content = line.encode("utf-8", errors="replace")
                digest.update(content)
                file.write(content)
            digests.append(digest.hexdigest())
        if (marker := read_marker(out, proof_by(store, PURPOSE))) is not None:
            write_marker(out, replace(marker, digests=(*proved_digests(out, marker), *digests)))


def proved_digests(out: Path, marker: Marker) -> tuple[str, ...]:
    """Return the digests of a marker that files of the folder have now."""
    return tuple({digest_at(out / name) for name in (MEDIA, CAPTIONS)} & {*marker.digests})


def inputs_in(out: Path, words: Sequence[str], folder: str) -> dict[str, str]:
    """Return each file and folder below an output folder that an option of a command names, and the
    digest of what it holds. `folder`: where the command runs."""
    inputs: dict[str, str] = {}
    for before, word in pairwise(words):
        option, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if not value or not option.startswith("--") or option in NOT_READ:
            continue
        path = os.path.realpath(os.path.join(folder, os.path.expanduser(value.removeprefix("@"))))
        if Path(path).is_relative_to(os.path.realpath(out)) and os.path.exists(path):
            inputs[path] = content_of(Path(path))
    return inputs


def content_of(path: Path) -> str:
    """Return the digest of a file, or of all files in a folder. Follows no link in it."""
    if not path.is_dir():
        return digest_at(path)
    below = (Path(at, name) for at, _, names in os.walk(path) for name in names)
    return digest_of(sorted([str(file.relative_to(path)), digest_at(file)] for file in below))


def keep_media(out: Path, data_set: str) -> None:
    """Keep the media of a data set in its folder: it is not written again by every run, and
    `media.jsonl` is. Raises EnvironmentFault."""
    saved, digest = out / data_set / DATA_SET_MEDIA, digest_at(out / MEDIA)
    if digest and digest != digest_at(saved):
        with open_regular(out / MEDIA) as media, whole_file(saved) as file:
            shutil.copyfileobj(media, file)


def media_mode(out: Path, config: RunOptions) -> str:
    """Return the mode of the media of a run's data sets: the requested one, or that of its
    folder."""
    marker = read_marker(out)
    return config.groups.data_sets.media or (EXACT if marker is None else marker.media)


def clip_sound(out: Path, config: RunOptions) -> str:
    """Return the sound of the clips of a run's data sets: as requested, or as that of its
    folder."""
    marker = read_marker(out)
    return config.groups.data_sets.clip_sound or (COPY if marker is None else marker.clip_sound)


def trainer_models(out: Path, config: RunOptions) -> dict[str, TrainerModel]:
    """Return the models that a run's data sets are set for, by trainer: the requested ones, and of
    other trainers those of its folder."""
    marker, of_folder = read_marker(out), dict[str, TrainerModel]()
    with contextlib.suppress(UsageError):  # a marker of another person may name anything
        of_folder = models_named(() if marker is None else marker.trainers)
    return of_folder | models_named(config.groups.data_sets.trainer)


def clips_sound(out: Path, config: RunOptions) -> bool:
    """Return whether the clips of a run have sound: a trainer of its data sets, or of those that
    its folder has, reads it."""
    marker = read_marker(out)
    formats = {*config.groups.outputs.format, *(() if marker is None else marker.outputs)}
    return bool(WITH_SOUND & formats) and clip_sound(out, config) == COPY

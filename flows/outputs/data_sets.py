"""Writes WebDataset shards and the data sets of trainers: selects the samples and their media.

In the data sets of trainers, a file with a single chunk is used whole; longer videos are used as
clips. If a trainer needs media in its own folder, or would confuse two files, the media are linked
there. The module runs no model.
"""

import contextlib
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath

from artifacts.disk.faults import disk_faults
from artifacts.disk.files import (
    HALF,
    OURS,
    are_equal,
    is_linked,
    is_spare,
    json_text,
    link,
    write_text,
)
from artifacts.disk.json_shapes import BYTES, Json
from artifacts.disk.names import folded
from artifacts.disk.regular_files import read_text, refuse_links
from artifacts.disk.stamps import stamp_of
from artifacts.errors import MediaError
from artifacts.remote.media_cache import copy_bytes, is_copy, open_local
from artifacts.texts.shards import (
    DATASET,
    Media,
    Sample,
    clips_in,
    kept_shards,
    media_suffix,
    read_index,
    write_shards,
)
from artifacts.texts.trainer_models import TrainerModel, form_of
from artifacts.texts.trainers import (
    TRAINERS,
    TrainerEntry,
    TrainerForm,
    TrainerSetup,
    ltx_option,
    musubi_takes,
    taken_frames,
)
from artifacts.wording import counted, first_of
from flows.core.job.prepare import Job
from flows.core.machine.launch import Launcher
from flows.core.media.generated_files import GeneratedFiles, digest_at
from flows.core.options.formats import EXACT
from flows.outputs.clips import (
    Clips,
    Cutter,
    OnProgress,
    SampleSource,
    batches,
    by_chunk,
    kept_note,
    one_per_chunk,
    sample_sources,
    silent_note,
    timed_anew,
)
from flows.outputs.marker import keep_media, media_mode, trainer_models
from flows.outputs.seen.check import lines_on_written
from flows.outputs.text_files import UserTexts, has_user_text


def write_dataset(
    job: Job, launcher: Launcher, on_progress: OnProgress, user_texts: dict[str, int]
) -> list[str]:
    """Update `OUT/webdataset` to the stored captions and return warnings. Adds the number of
    samples with user-written text to `user_texts`. Raises PenstockError."""
    folder = job.out / DATASET
    texts = UserTexts(job)
    items, left_out = _taken(job, texts)
    before = read_index(folder)
    shards = kept_shards(folder, [item.sample.digest() for item in items])
    rest = items[sum(shard.samples for shard in shards) :]
    cutter = Cutter(job, launcher, on_progress, folder / f"{HALF}cut")
    notes = [f"not in {DATASET}: {counted(left_out, 'chunk')} ({UNCUT})"] if left_out else []
    if rest or shards != before:
        on_progress("webdataset", len(items), len(items) - len(rest))
        clips = Clips(job, launcher, on_progress)
        exact = clips.exact
        is_stored = exact or any(item.away for item in rest)
        stored = clips_in(folder) if is_stored else {}
        plain = {
            item.sample.clip: not exact or clips.is_shown_as_seen(item)
            for item in rest
            if item.whole
        }
        keys = {item.sample.clip for item in rest}
        clips_by_key = {key: clips.find(key) or stored.get(key) for key in keys}
        copies: dict[str, tuple[str, int]] = {}
        shards = write_shards(folder, shards, _samples(rest, cutter, clips_by_key, plain, copies))
        fresh = (item for item in rest if exact and item.whole and item.sample.clip not in stored)
        notes += clips.note_on_files(fresh, copies)
        notes += [silent_note(cutter.silent)] if cutter.silent else []
        cutter.clear()
    keep_media(job.out, DATASET)
    user_texts[DATASET] = sum(has_user_text(item.sample.rows) for item in items)
    bare = sum(shard.without_media for shard in shards)
    if not bare:
        return [*notes, *texts.notes()]
    why = f" ({cutter.refused[0]})" if cutter.refused else ""
    return [
        f"{bare} webdataset samples have no media: they could not be cut, or their files "
        f"changed{why}",
        *notes,
        *texts.notes(),
    ]


def is_stale(job: Job) -> bool:
    """Return whether a dataset exists that differs from the stored captions."""
    folder = job.out / DATASET
    before = read_index(folder)
    digests = [item.sample.digest() for item in _taken(job)[0]] if before else []
    return kept_shards(folder, digests) != before or sum(s.samples for s in before) != len(digests)


UNCUT = "of longer videos, which --media original does not cut"
"""Why the media of chunks are in no data set."""


def _taken(job: Job, user_texts: UserTexts | None = None) -> tuple[list[SampleSource], int]:
    """Return one sample per chunk, and how many chunks are left out because nothing is cut."""
    groups = sample_sources(job, user_texts)
    items = [item for group in groups for item in one_per_chunk(group)]
    is_cut = media_mode(job.out, job.config) == EXACT
    taken = [item for item in items if is_cut or item.whole]
    return taken, len(items) - len(taken)


def _samples(
    items: Sequence[SampleSource],
    cutter: Cutter,
    known: Mapping[str, Media | None],
    plain: Mapping[str, bool],
    copies: dict[str, tuple[str, int]],
) -> Iterator[tuple[Sample, Media | None]]:
    """Yield each sample with its media, by the clip's key: clips that are `known`, files that are
    samples as they are (`plain`), and clips that are cut for it. These are deleted after their
    batch; `copies` gets the reason and the bytes of those of whole files."""
    for batch in batches(items):
        by_clip = {item.sample.clip: item for item in batch}
        cut = cutter(
            [
                item
                for key, item in by_clip.items()
                if not (known.get(key) or plain.get(key) or item.away)
            ]
        )
        for item in batch:
            key = item.sample.clip
            if stored := known.get(key):
                yield item.sample, stored
            elif plain.get(key) or cutter.differs.get(key) == "":
                try:
                    with open_local(item.file) as path:
                        medium = Media(
                            path=path,
                            suffix=media_suffix(item.file.name),
                            start=item.sample.row.start,
                            stamp=item.stamp,
                            clip=key,
                        )
                        yield item.sample, medium
                except MediaError as error:
                    cutter.refused.append(f"{item.file.name}: {error.message}")
                    yield item.sample, None
            else:
                yield item.sample, cut.get(key)
        for key, media in cut.items():
            if why := cutter.differs.get(key):
                copies[key] = why, media.path.stat().st_size
            media.path.unlink(missing_ok=True)


MOSTLY = 0.9
"""Share of the videos' seconds from which a trainer takes them as good as whole."""
LINKED = re.compile(r"[A-Za-z0-9_-]+-[0-9a-f]{12}-\d{5,}(-\d+)?\.[a-z0-9]{1,8}")
"""File names of linked media in the folder of a data set."""

Times = Callable[[Path], tuple[float, int]]
"""A function of the path of a video: its frames per second, and their number."""
Chunk = Sequence[SampleSource]
"""The samples of one chunk, one per prompt, with the same media."""


@dataclass(kw_only=True, slots=True)
class TrainersWritten:
    """The data sets that were written, and notes about them for the user."""

    forms: list[str] = field(default_factory=list)
    """Formats whose files are up to date, but those that users edited."""
    notes: list[str] = field(default_factory=list)
    captions: dict[str, int] = field(default_factory=dict)
    """Format → number of captions of this run in it."""
    user_texts: dict[str, int] = field(default_factory=dict)
    """Format → number of its entries that users wrote or corrected."""
    edited: dict[str, list[str]] = field(default_factory=dict)
    """Format → names of its files that users wrote or edited, which are kept."""


def write_trainers(job: Job, launcher: Launcher, on_progress: OnProgress) -> TrainersWritten:
    """Update the requested data sets, and those that an earlier run wrote to `OUT`. Raises
    PenstockError."""
    own = GeneratedFiles(job.store, "trainer ", job.out)
    forms = [
        name
        for name in TRAINERS
        if name in job.config.groups.outputs.format or _is_own(job, own, name)
    ]
    written = TrainersWritten()
    for model in trainer_models(job.out, job.config).values():
        if form_of(model.trainer) not in TRAINERS:  # it takes the texts
            trigger = job.config.groups.text.trigger
            written.notes += lines_on_written(job.out, model, trigger, {})
    for name in (name for name in TRAINERS if name not in forms):  # no file in it is a run's
        folder = job.out / name
        if kept := TRAINERS[name].files_in(folder):
            written.edited[name] = kept
            written.notes.append(kept_note(kept, folder))
    if not forms:
        return written
    user_texts = UserTexts(job)
    items = [chunk for group in sample_sources(job, user_texts) for chunk in by_chunk(group)]
    clips, times = Clips(job, launcher, on_progress), cache(_rate_and_frames)
    firsts: dict[str, SampleSource] = {}
    media: dict[bool, tuple[list[Chunk], dict[str, Path]]] = {}
    """Whether videos are timed anew → the chunks, and the clip of each sample."""
    is_anew = {name: TRAINERS[name].keeps_rate and job.sampling.clip_frames > 0 for name in forms}
    for anew in sorted({*is_anew.values()}):
        chunks: list[Chunk] = [[*map(timed_anew, c)] for c in items] if anew else [*items]
        trainers = [TRAINERS[name] for name in forms if is_anew[name] == anew]
        taken, cut = _clips_of(clips, chunks, trainers)
        media[anew] = chunks, cut
        firsts |= {first.sample.key: first for first in taken}
    for name in forms:
        trainer = _TrainerFolder(job, own, name, clips, times)
        if kept := trainer.write(*media[is_anew[name]]):
            written.edited[name] = kept
        written.forms.append(name)
        keep_media(job.out, name)
        written.notes += trainer.notes()
        written.captions[name] = trainer.captions
        written.user_texts[name] = trainer.user_texts
    written.notes += clips.note_on_files(
        first for first in firsts.values() if clips.exact and first.whole
    )
    written.notes += clips.notes()
    written.notes += user_texts.notes()
    return written


def _clips_of(
    clips: Clips, chunks: Sequence[Chunk], trainers: Sequence[TrainerForm]
) -> tuple[list[SampleSource], dict[str, Path]]:
    """Return the first sample of each chunk that trainers take, and the clip of each. Raises
    PenstockError."""
    taken = [
        chunk[0] for chunk in chunks if any(chunk[0].kind in form.folders for form in trainers)
    ]
    unread = {
        first.sample.clip
        for first in taken
        if any(not form.reads(first.kind, first.file.name) for form in trainers)
    }
    return taken, clips.clips_for(taken, unread) if clips.exact else {}


def _is_own(job: Job, own: GeneratedFiles, name: str) -> bool:
    """Return whether `OUT` has a generated file of this data set."""
    files = TRAINERS[name].files_in(job.out / name)
    return any(own.has(f"{name}/{file}", digest_at(job.out / name / file)) for file in files)


def unread(kind: str, file: Path) -> tuple[str, str]:
    """Return what a file is whose kind a trainer does not read, and the reason or what to do."""
    from stages.frames.image import is_still

    if is_still(file):
        return f"single-frame {media_suffix(file.name).upper()}", "save it as PNG"
    return kind, f"it reads no {kind}s"


def _rate_and_frames(path: Path) -> tuple[float, int]:
    """Return the frames per second and the number of frames of a video; 0 for what cannot be
    read."""
    from stages.frames.media_opening import rate_and_frames

    with contextlib.suppress(MediaError, OSError):
        rate, frames = rate_and_frames(path)
        return round(rate, 3), frames
    return 0.0, 0


def _notes_on_media(
    form: str, entries: Sequence[TrainerEntry], model: TrainerModel | None, advice: bool
) -> Iterator[str]:
    """Yield notes about what a trainer takes of the media for a model, and about what its own
    program is given. With `advice`, `--clip-frames` would make other clips."""
    if model is None or not entries:
        return
    if not (TRAINERS[form].times and model.frames):
        return
    if form == "ltx":
        yield f'{model.label}: --resolution-buckets "{ltx_option(entries, model)}" fits'
    yield from _note_on_seconds(taken_frames(form, entries, model), model, advice)


def _note_on_seconds(
    taken: Sequence[tuple[TrainerEntry, int, float]], model: TrainerModel, advice: bool
) -> Iterator[str]:
    """Yield a note if a trainer does not take most of the videos."""
    seconds = sum(entry.frames / entry.rate for entry, _, _ in taken)
    seen = sum(frames / rate for _, frames, rate in taken if frames > 1)
    if seen >= MOSTLY * seconds:
        return
    chunk = (model.frames + 1) / max(rate for _, _, rate in taken)
    has_longer = any(entry.frames / entry.rate > chunk + 1 for entry, _, _ in taken)
    rate = "" if model.fps else " and --clip-fps"
    shorter = f"; --clip-frames {model.frames}{rate} makes clips that it takes whole"
    yield (
        f"{model.label} takes {seen:,.1f} of {seconds:,.1f} s of the clips, their beginnings"
        f"{shorter * (has_longer and advice)}"
    )


def _notes_on_settings(
    file: Path, texts: Mapping[str, str], model: TrainerModel | None
) -> Iterator[str]:
    """Yield notes on a configuration that the user edited: what would be set for a model, and which
    lists of media it does not name, or names though they are no longer written."""
    try:
        own = tomllib.loads(read_text(file, BYTES))
    except (OSError, ValueError):
        yield f"{file} cannot be read as TOML: the trainer will refuse it"
        return
    written = tomllib.loads(texts[file.name])
    own_values, values = [*_values(own)], [*_values(written)]
    missing = [(key, value) for key, value in values if (key, value) not in own_values]
    decided = dict.fromkeys(f"{key} = {json_text(value)}" for key, value in missing if key in SET)
    if decided and model is not None:
        yield f"{model.label} would set in {file}: {', '.join(decided)}"
    named, lists = (
        {Path(value).name for key, value in of if key in LISTS and isinstance(value, str)}
        for of in (own_values, values)
    )
    if unnamed := sorted(lists - named):
        yield f"{file} does not name {', '.join(unnamed)}: add a [[datasets]] for each"
    if stale := sorted(name for name in named - lists if (file.parent / name).is_file()):
        yield f"{file} names {', '.join(stale)}, which is not written any more"


def _values(toml: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    """Yield each key of a configuration, in whatever section, with its value."""
    for key, value in toml.items():
        for inner in value if isinstance(value, list) else (value,):
            if isinstance(inner, dict):
                yield from _values(inner)
        yield key, value


SET = ("max_bucket_reso", "keep_tokens", "frame_extraction", "max_frames", "frame_buckets")
"""Keys of configurations that depend on the model or on the media."""
LISTS = ("video_jsonl_file", "image_jsonl_file")
"""Keys of those that name a list of media."""


class _TrainerFolder:
    """The data set of one trainer in `OUT`."""

    def __init__(
        self, job: Job, own: GeneratedFiles, name: str, clips: Clips, times: Times
    ) -> None:
        self._own = own
        self._name = name
        self._form: TrainerForm = TRAINERS[name]
        self._folder = job.out / name
        groups = job.config.groups
        self._replace = groups.outputs.replaces
        video, model = groups.video, trainer_models(job.out, job.config).get(name)
        count, fps = job.sampling.clip_frames, job.sampling.clip_fps
        if count and model is not None and model.frames and model.fps in (0.0, fps):
            model = replace(model, frames=count, exact=True)
        self._setup = TrainerSetup(model=model, trigger=groups.text.trigger, clip_frames=count)
        self._clips = clips
        self._advises = clips.exact and not (video.whole or video.shots or count)
        self._times = times
        self._settings: list[str] = []
        """Notes about what the trainer takes of videos, and about settings that were kept."""
        self._kept: list[str] = []
        self._left_out: Counter[tuple[str, str]] = Counter()
        """Kind of what is left out, and the reason → count."""
        self._copied = 0
        self.captions = 0
        """Number of captions of this run in its files."""
        self.user_texts = 0
        """Number of entries, in files that were written, that users wrote or corrected."""
        self._spare: list[str] = []
        """Names of media of an earlier run that may be the last copy."""

    def write(self, items: Sequence[Chunk], cut: Mapping[str, Path]) -> list[str]:
        """Write its files. Return the names of those that users wrote or edited, which are kept."""
        usable = [
            (chunk, path) for chunk in items if (path := self._media(chunk[0], cut)) is not None
        ]
        for chunk, _ in () if self._form.several else usable:
            one = f"it takes one per sample, that of prompt {chunk[0].sample.row.name}"
            self._left_out.update({("caption", one): len(chunk) - 1} if len(chunk) > 1 else {})
        entries = self._entries(usable)
        texts = self._form.write(entries, self._folder, self._setup)
        self._settings += _notes_on_media(self._name, entries, self._setup.model, self._advises)
        for file, text in texts.items():
            content = text.encode("utf-8", errors="replace")
            form = f"{self._name}/{file}"
            if not self._own.update(self._folder / file, content, form, replace=self._replace):
                self._kept.append(file)
                if file.endswith(".toml"):
                    path, model = self._folder / file, self._setup.model
                    self._settings += _notes_on_settings(path, texts, model)
        kept = {file for file in self._kept if ".json" in file}  # captions, and not settings
        for entry in entries:
            rows = entry.rows if self._form.several else entry.rows[:1]
            if not (kept and kept & {*self._form.write([entry], self._folder, self._setup)}):
                self.captions += len(rows)
                self.user_texts += has_user_text(rows)
        with disk_faults(self._folder):
            self._clear(set(texts), {entry.path for entry in entries})
        if self._setup.model is not None and entries:
            known = {self._folder / entry.path: entry for entry in entries}
            out, trigger = self._folder.parent, self._setup.trigger
            self._settings += lines_on_written(out, self._setup.model, trigger, known)
        return self._kept

    def _media(self, item: SampleSource, cut: Mapping[str, Path]) -> Path | None:
        """Return the file of one chunk, if the trainer can read it."""
        is_file = item.whole and (
            not self._clips.exact
            or (self._clips.is_shown_as_seen(item) and self._form.reads(item.kind, item.file.name))
        )
        path = item.file if is_file else cut.get(item.sample.key)
        model = self._setup.model
        if item.kind not in self._form.folders:
            self._left_out[unread(item.kind, item.file)] += 1
        elif item.kind == "video" and model is not None and not model.frames:
            self._left_out[item.kind, f"{model.name} is trained on pictures"] += 1
        elif not (item.whole or self._clips.exact):
            self._left_out["chunk", UNCUT] += 1
        elif path is None:
            pass  # reported once for all trainers
        elif not self._form.takes(item.kind, suffix := media_suffix(path.name)):
            self._left_out[item.kind, f"it does not read .{suffix}"] += 1
        elif is_file and _changed(item):
            self._left_out["file", "changed since it was captioned"] += 1
        else:
            return path
        return None

    def _entries(self, usable: Sequence[tuple[Chunk, Path]]) -> list[TrainerEntry]:
        """Return the entries; link media that the trainer needs in its folder or would confuse."""
        # A trainer may cache files on that disk.
        apart = [folded(self._form.apart(PurePosixPath(os.path.abspath(p)))) for _, p in usable]
        seen, names = Counter(apart), Counter[str]()
        entries: list[TrainerEntry] = []
        for (chunk, path), key in zip(usable, apart, strict=True):
            item, media_path = chunk[0], str(path)
            is_timed = self._form.times and item.kind == "video"
            rate, frames = self._times(path) if is_timed else (0.0, 0)
            entry = TrainerEntry(
                kind=item.kind,
                path=media_path,
                rows=tuple(source.sample.row for source in chunk),
                size=item.size,
                rate=rate,
                frames=frames,
            )
            model = self._setup.model
            least = model.least if model is not None and rate else 0
            if model is not None and least and musubi_takes(entry, model) < least:
                few = f"{model.name} takes none of fewer than {least} frames"
                self._left_out[item.kind, few] += 1
                continue
            if self._form.own_media or seen[key] > 1 or is_copy(path):
                try:
                    inside = self._linked(item, path, names)
                except MediaError as error:
                    self._left_out["file", f"not available now ({error.kind})"] += 1
                    continue
                media_path = inside if self._form.own_media else str(self._folder / inside)
            entries.append(replace(entry, path=media_path))
        return entries

    def _linked(self, item: SampleSource, path: Path, names: Counter[str]) -> str:
        """Link media into the folder, and return the relative path. Raises EnvironmentFault."""
        key = item.sample.clip
        stem = path.stem if path.parent == self._clips.folder else key
        stem = folded(stem)  # a disk may list it so, and a trainer looks for what is listed
        names[stem] += 1
        stem += f"-{names[stem]}" if names[stem] > 1 else ""
        inside = f"{self._form.folders[item.kind]}/{stem}.{media_suffix(path.name)}"
        target = self._folder / inside
        is_away = item.away and os.path.lexists(target)
        if not (is_away or is_linked(path, target) or self._has_copy(path, target)):
            is_own = self._clips.made(target, key) or is_spare(target) or are_equal(path, target)
            if not (self._replace or is_own):
                self._kept.append(inside)
                return inside
            self._mark()
            with open_local(path) as here:
                # A cached copy may be deleted, which would break a symbolic link.
                self._copied += link(here, target, symbolic=not is_copy(path))
        return inside

    @staticmethod
    def _has_copy(path: Path, target: Path) -> bool:
        """Return whether the target still holds the bytes of a copy that may be deleted."""
        with contextlib.suppress(OSError):
            return target.stat().st_size == copy_bytes(path)
        return False

    def _mark(self) -> None:
        """Mark the folder, so that a later run on its parent does not caption its media."""
        write_text(self._folder / OURS, ())

    def _clear(self, files: set[str], media: set[str]) -> None:
        """Remove files of an earlier run that this one does not need. Keep all of them while a
        user's file may refer to them."""
        if self._kept:
            return
        for file in self._form.files_in(self._folder):
            path = self._folder / file
            if file not in files and self._own.has(f"{self._name}/{file}", digest_at(path)):
                path.unlink(missing_ok=True)
        for folder in ("", *self._form.folders.values()):
            media_path = self._folder / folder
            refuse_links(media_path)
            names = sorted(os.listdir(media_path)) if media_path.is_dir() else []
            paths = (Path(path) for path in media)
            needed = {folded(path.name) for path in paths if path.parent.name == folder}
            for name in names:
                if name.startswith(HALF) and name != OURS:  # left by a killed run
                    (media_path / name).unlink()
                elif folder and folded(name) not in needed and LINKED.fullmatch(name):
                    if is_spare(media_path / name):
                        (media_path / name).unlink()
                    else:
                        self._spare.append(name)

    def notes(self) -> Iterator[str]:
        """Yield notes for the user about the data set."""
        yield from self._settings
        for (noun, why), count in self._left_out.items():
            yield f"not in {self._name}: {counted(count, noun)} ({why})"
        if self._kept:
            yield kept_note(self._kept, self._folder)
        if self._copied:
            yield (
                f"{counted(self._copied, 'file')} copied into {self._folder}: the disk does not "
                "support links"
            )
        if self._spare:
            yield (
                f"not from this run: {counted(len(self._spare), 'file')} in {self._folder} "
                f"({first_of(self._spare)}), kept as possibly the last copy"
            )


def _changed(item: SampleSource) -> bool:
    try:
        return stamp_of(item.file) != item.stamp if item.stamp is not None else False
    except OSError:
        return True

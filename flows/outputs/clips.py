"""Writes one clip per chunk of longer videos to `OUT/clips`, for trainers that read files.

1. The samples of captioned media are listed, with their sources.
2. Chunks are cut out of videos in separate processes.
3. Clips that are still correct are kept, and so are clips that a user edited.

`index.json` records the file stamp that each clip had when it was cut. It is written before clips
get their final names, so a clip that the index does not list was not made by a run. The module runs
no model.
"""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifacts.disk.faults import disk_faults
from artifacts.disk.files import HALF, OURS, replace_file, write_json, write_text
from artifacts.disk.json_shapes import BYTES, Json
from artifacts.disk.names import folded
from artifacts.disk.regular_files import read_text, refuse_links
from artifacts.disk.stamps import Stamp, stamp_of
from artifacts.errors import CannotFit, EnvironmentFault, Killed, StageDied
from artifacts.texts.captions import Caption
from artifacts.texts.shards import SHARD_BYTES, Media, Sample, media_suffix, sample_key
from artifacts.texts.trainers import WITH_CLIPS
from artifacts.wording import counted, first_of, reasons
from flows.core.console.lines import gib
from flows.core.job.job_file import JobFile
from flows.core.job.prepare import Job
from flows.core.machine.launch import MAX_RESTARTS, Launcher, StageCall, StageHandle
from flows.core.media.media_file import Selection
from flows.core.options.formats import EXACT, MADE, RETIMED, SOUNDING, sounding, timing
from flows.outputs.captions import captions_of
from flows.outputs.marker import clips_sound, media_mode
from flows.outputs.text_files import UserTexts
from stages.frames.job import CutItem, CutJob
from stages.process.exit_diagnosis import is_crash
from stages.process.host_memory import cores, host_free_bytes

SAME_SECONDS = 0.001
"""A chunk that ends this close to the end of a medium, in seconds, reaches its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSource:
    """One sample, and the source of its media."""

    sample: Sample
    file: Path
    kind: str
    """`image` or `video`."""
    whole: bool
    """Whether the sample uses the whole file."""
    damaged: bool
    """Whether the file was read with warnings."""
    stamp: Stamp | None
    """Stamp of the file when it was captioned; None: unknown, or it is away."""
    away: bool
    """Whether the file cannot be read now, so that nothing is cut from it."""
    size: tuple[int, int]
    """Width and height of the medium in pixels."""


def sample_sources(job: Job, user_texts: UserTexts | None = None) -> Iterator[list[SampleSource]]:
    """Yield the samples of each file, in source order, grouped by prompt. User-written texts
    replace captions."""
    copies: Counter[tuple[str, str, str]] = Counter()
    user_texts = user_texts or UserTexts(job)
    cut = MADE[media_mode(job.out, job.config)][not job.sampling.deinterlace]
    timed = timing(job.sampling.clip_frames, job.sampling.clip_fps)
    track = job.config.groups.sound.sound_track or 0
    sound = sounding(track) * clips_sound(job.out, job.config)
    for group in job.by_file:
        items: list[SampleSource] = []
        for job_file in group:
            captions = user_texts.apply(job_file, captions_of(job, job_file), first=not items)
            if captions:
                alike = (job_file.file.media_path, job_file.medium.digest, job_file.medium.prompt)
                copies[alike] += 1
                of_kind = cut + (timed + sound) * (job_file.medium.kind == "video")
                items += _items_of(job, job_file, captions, copies[alike], of_kind)
        yield items


def _items_of(
    job: Job, of: JobFile, captions: Sequence[Caption], copy: int, made: str
) -> list[SampleSource]:
    medium = of.medium
    index = job.ledger.media_index(medium)
    assert index is not None
    numbers = {chunk.start: chunk.index for chunk in index.chunks}
    is_whole = captions[0].start == index.start and captions[0].end > index.end - SAME_SECONDS
    return [
        SampleSource(
            sample=Sample(
                key=sample_key(row.media_path, medium.digest, row.prompt, copy, numbers[row.start]),
                row=row,
                content=medium.digest,
                made=made,
                chunk=numbers[row.start],
            ),
            file=of.file.path,
            kind=medium.kind,
            whole=is_whole,
            damaged=bool(index.all_warnings),
            stamp=None if of.away else medium.stamp,
            away=of.away,
            size=(index.width, index.height),
        )
        for row in captions
    ]


def by_chunk(items: Sequence[SampleSource]) -> list[list[SampleSource]]:
    """Return the samples of a file grouped by chunk, the first prompt's sample first."""
    chunks: dict[int, list[SampleSource]] = {}
    for item in items:
        chunks.setdefault(item.sample.chunk, []).append(item)
    return [chunks[number] for number in sorted(chunks)]


def timed_anew(item: SampleSource) -> SampleSource:
    """Return a sample of a video whose clip has a trainer's frames at its rate."""
    if item.kind != "video":
        return item
    before, sound, track = item.sample.made.partition(SOUNDING)
    return replace(item, sample=replace(item.sample, made=before + RETIMED + sound + track))


def one_per_chunk(items: Sequence[SampleSource]) -> list[SampleSource]:
    """Return one sample per chunk: that of the first prompt, with the other captions added."""
    return [
        replace(first, sample=replace(first.sample, others=tuple(o.sample.row for o in others)))
        for first, *others in by_chunk(items)
    ]


PROCESS_BYTES = 1 << 30
"""Memory of a process that encodes 4K video."""
OnProgress = Callable[[str, int, int], None]
"""Callback with the name of a step, its total, and how many are done."""


def batches(items: Sequence[SampleSource]) -> Iterator[list[SampleSource]]:
    """Yield the items in batches of about SHARD_BYTES of videos to cut. All chunks of a video are
    in one batch."""
    batch: list[SampleSource] = []
    filled = 0
    for item in items:
        if not item.whole and (not batch or batch[-1].file != item.file):
            if filled > SHARD_BYTES:
                yield batch
                batch, filled = [], 0
            filled += os.path.getsize(item.file) if item.file.exists() else 0
        batch.append(item)
    if batch:
        yield batch


class Cutter:
    """Cuts chunks of videos in separate processes, because a damaged file may crash one."""

    def __init__(
        self, job: Job, launcher: Launcher, on_progress: OnProgress, temporary: Path
    ) -> None:
        self._log = job.out / "logs" / "cut.log"
        self._launcher = launcher
        self._on_progress = on_progress
        self._folder = temporary / "cuts"
        self.refused: list[str] = []
        """Names of files that could not be cut, each with the reason."""
        self.differs: dict[str, str] = {}
        """Key of each whole file's clip → why a reader may show it otherwise than the model saw it;
        empty if none does."""
        self._copied: Collection[str] = ()
        self.why: dict[str, str] = {}
        """Key of each clip that could not be cut → why."""
        self.silent: dict[str, str] = {}
        """Key of each clip without the sound that its video has → why."""
        self._kills = 0
        """Consecutive times that a process was killed before it cut anything."""
        self._sampling = job.sampling
        self._sound = clips_sound(job.out, job.config)
        self._track = job.config.groups.sound.sound_track or 0
        fitting = host_free_bytes() // PROCESS_BYTES
        self._processes = max(1, min(cores() - 1, fitting))

    def __call__(
        self, items: Sequence[SampleSource], copied: Collection[str] = ()
    ) -> dict[str, Media]:
        """Cut the items and return the key of each clip → its media. Whole files that every
        reader shows as the model saw them are not cut, except those `copied`, by their clips."""
        self._copied = copied
        results = self._finished(items)
        while remaining := [item for item in items if item.sample.clip not in results]:
            self._on_progress("cut", len(items), len(items) - len(remaining))
            results |= self._run(remaining)
        media: dict[str, Media] = {}
        for item in items:
            key = item.sample.clip
            result = results[key]
            if "plain" in result:
                self.differs[key] = result.get("why", "")
            if "silent" in result:
                self.silent[key] = result["silent"]
            if "file" in result:
                path = self._folder / result["file"]
                media[key] = Media(path=path, suffix=media_suffix(path.name), clip=key)
            elif "error" in result:
                self.refused.append(f"{item.file.name}: {result['error']}")
                self.why[key] = result["error"]
        return media

    def clear(self) -> None:
        """Delete what is left of the cuts, when all of them are where they belong."""
        shutil.rmtree(self._folder.parent, ignore_errors=True)

    def _finished(self, items: Sequence[SampleSource]) -> dict[str, dict[str, str]]:
        """Return the results of clips that a killed run has finished."""
        keys = [item.sample.clip for item in items if not item.whole]
        names = {key: f"{key}.mp4" for key in keys}
        return {
            key: {"file": name} for key, name in names.items() if (self._folder / name).is_file()
        }

    def _run(self, items: Sequence[SampleSource]) -> dict[str, dict[str, str]]:
        """Cut items in several processes, and return the results that they have. If a process died,
        that includes an error for the file that it was cutting."""
        with disk_faults(self._folder):
            refuse_links(self._folder)
            self._folder.mkdir(parents=True, exist_ok=True)
        parts = _parts(items, self._processes)
        running: list[StageHandle] = []
        results: dict[str, dict[str, str]] = {}
        try:
            running += [self._launcher.start(self._call(part)) for part in parts]
            for part, process in zip(parts, running, strict=True):
                results |= self._results_of(part, process)
        except BaseException:
            for process in running:
                process.stop()
            raise
        return results

    def _call(self, items: Sequence[SampleSource]) -> StageCall:
        cuts = [
            CutItem(
                str(item.file),
                item.sample.clip,
                item.sample.row.start,
                item.sample.row.end,
                item.stamp,
                item.kind,
                item.whole,
                item.sample.clip in self._copied,
                item.damaged,
                RETIMED in item.sample.made,
            )
            for item in items
        ]
        job = CutJob(
            folder=str(self._folder),
            cuts=cuts,
            deinterlace=self._sampling.deinterlace,
            sound=self._sound,
            track=self._track,
            clip=(self._sampling.clip_frames, self._sampling.clip_fps),
        )
        return StageCall(name="cut", job=job, device="cpu", log=self._log)

    def _results_of(
        self, items: Sequence[SampleSource], process: StageHandle
    ) -> dict[str, dict[str, str]]:
        """Wait for a process, and return what became of its items. Raises PenstockError."""
        try:
            results = process.wait().notes
            return {i.sample.clip: results[i.sample.clip] for i in items}
        except (StageDied, CannotFit) as error:
            results = dict(process.outcome.notes)
            first = next((item for item in items if item.sample.clip not in results), None)
            if first is None or not (isinstance(error, CannotFit) or is_crash(error)):
                raise
            for item in items:
                if item.file == first.file:
                    results.setdefault(item.sample.clip, {"error": error.message})
        except Killed:
            results = dict(process.outcome.notes)
            is_cut = any(item.sample.clip in results for item in items)
            self._kills = 0 if is_cut else self._kills + 1
            if self._kills > MAX_RESTARTS:
                raise
        return {i.sample.clip: results[i.sample.clip] for i in items if i.sample.clip in results}


def _parts(items: Sequence[SampleSource], count: int) -> list[list[SampleSource]]:
    """Return at most so many parts of equal size, in order: neighbouring chunks of a video are
    decoded in one pass."""
    size = -(-len(items) // count)
    return [[*items[at : at + size]] for at in range(0, len(items), size)]


CLIPS, INDEX = "clips", "index.json"
UNREAD = "a format that a trainer does not read"


def kept_note(names: Sequence[str], folder: Path) -> str:
    """Return a note about user files that were kept in a folder."""
    old = ", with the captions that were in it" if any(".json" in name for name in names) else ""
    return (
        f"{first_of(names)} kept in {folder}, edited by you{old}; --existing replace would "
        "overwrite your edits"
    )


def silent_note(silent: Mapping[str, str]) -> str:
    """Return a note about clips without sound: key of each → why."""
    why = Counter(silent.values()).most_common(1)[0][0]
    return f"{counted(len(silent), 'clip')} for trainers without the sound of the video ({why})"


def check_encoder(formats: Collection[str]) -> None:
    """Raise EnvironmentFault if these formats may need exact clips that FFmpeg cannot encode."""
    if not WITH_CLIPS & {*formats}:
        return
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    from stages.frames.job import ENCODER

    try:
        Codec(ENCODER, "w")
    except UnknownCodecError as error:
        raise EnvironmentFault(
            f"the FFmpeg of this PyAV has no {ENCODER}, which exact clips are encoded with",
            hint="Install the wheel of PyAV from PyPI, or give --media original",
        ) from error


class Clips:
    """The clips in `OUT`, and the outcome for those that were requested."""

    def __init__(self, job: Job, launcher: Launcher, on_progress: OnProgress) -> None:
        self.folder = job.out / CLIPS
        self._replace = job.config.groups.outputs.replaces
        self._retry_failed = job.config.retry_failed
        self._index = _read_index(self.folder / INDEX)
        self._cutter = Cutter(job, launcher, on_progress, self.folder / f"{HALF}new")
        self.exact = media_mode(job.out, job.config) == EXACT
        """Whether chunks are cut, and files copied that readers show otherwise."""
        self.kept: list[str] = []
        """Names of clips that users edited or added."""
        self.refused: dict[str, str] = {}
        """Key of each sample that could not be cut → why."""
        self._silent: dict[str, str] = {}
        """Key of each clip without the sound that its video has → why."""

    def clips_for(
        self, items: Sequence[SampleSource], copied: Collection[str] = ()
    ) -> dict[str, Path]:
        """Return the key of each sample → its clip. Cuts missing clips. A whole file has none if
        every reader shows it as the model saw it (`is_shown_as_seen`), unless its clip is in
        `copied`. Raises PenstockError."""
        keys = {item.sample.key: item.sample.clip for item in items}
        by_key = {keys[item.sample.key]: item for item in reversed(items)}
        present = self._present()
        missing = [
            item
            for item in reversed(by_key.values())
            if not self._is_right(item, present, copied) and not item.away
        ]
        self._cut(missing, copied)
        clips = {key: path for key in by_key if (path := self._clip_path(key)) is not None}
        return {name: clips[key] for name, key in keys.items() if key in clips}

    def find(self, key: str) -> Media | None:
        """Return an unchanged clip that an earlier run made."""
        entry = self._index.get(key, {})
        path = self._clip_path(key) if "file" in entry else None
        if path is None or not self.made(path, key):
            return None
        return Media(path=path, suffix=media_suffix(path.name), clip=key)

    def made(self, path: Path, key: str) -> bool:
        """Return whether a file, in any folder, is the unchanged clip of a key."""
        entry = self._index.get(key, {})
        with contextlib.suppress(OSError):
            stamp = stamp_of(path)
            return [stamp.size, stamp.modified] == entry.get("state")
        return False

    def note_on_files(
        self, items: Iterable[SampleSource], others: Mapping[str, tuple[str, int]] | None = None
    ) -> Iterator[str]:
        """Yield a note for the user: how many whole files stand as they are in data sets, and how
        many as exact copies, and why. `others`: reason and bytes of copies elsewhere, by clip."""
        keys, copies = {item.sample.clip for item in items}, {**(others or {})}
        for key in keys:
            if "file" in (entry := self._index.get(key, {})):
                copies[key] = (entry.get("why") or UNREAD, entry.get("state", [0])[0])
        if not copies:
            return
        why = Counter(reason for reason, _ in copies.values())
        yield (
            f"data sets: {counted(len(keys) - len(copies), 'file')} as they are, {len(copies):,} "
            f"as exact copies ({gib(sum(size for _, size in copies.values()))}): {reasons(why)}"
        )

    def notes(self) -> Iterator[str]:
        """Yield notes for the user about the clips."""
        if self.refused:
            why, count = next(iter(self.refused.values())), counted(len(self.refused), "chunk")
            yield f"{count} could not be cut for trainers ({why})"
        if self._silent:
            yield silent_note(self._silent)
        if self.kept:
            yield kept_note(self.kept, self.folder)

    def _present(self) -> dict[str, str]:
        """Return the stem of each file, as names count as equal → its name."""
        selected = Selection(recursive=False, extensions=())  # and no text or latents beside a clip
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            return {
                folded(Path(entry.name).stem): entry.name
                for entry in entries
                if selected.takes(entry.name) and entry.is_file(follow_symlinks=False)
            }
        return {}

    def is_shown_as_seen(self, item: SampleSource) -> bool:
        """Return whether every reader shows a whole file as the model saw it."""
        return bool(self._index.get(item.sample.clip, {}).get("plain"))

    def _is_right(
        self, item: SampleSource, present: dict[str, str], copied: Collection[str]
    ) -> bool:
        """Return whether a clip need not be cut: it exists, is a user's, or failed before. A user's
        stays when clips get sound, or lose it."""
        key = item.sample.clip
        entry = self._index.get(key, {})
        if "error" in entry and not self._retry_failed:
            return True
        if entry.get("plain") and "file" not in entry:
            return key not in copied
        name, other = present.get(folded(key)), _key_of_other_sound(item)
        if name is None and (name := self._edited(other, present)):
            entry = self._index.get(other, {})
        if name is None:
            return False
        if self.made(self.folder / name, key):
            return True
        if self._replace:
            return False
        self.kept.append(name)
        self._index[key] = {**entry, "file": name}
        return True

    def _edited(self, key: str, present: Mapping[str, str]) -> str | None:
        """Return the name of the clip of a key if a user edited it."""
        name = present.get(folded(key))
        return None if name is None or self.made(self.folder / name, key) else name

    def _clip_path(self, key: str) -> Path | None:
        """Return the clip of a key; None if cutting it failed."""
        entry = self._index.get(key, {})
        if "error" in entry:
            self.refused[key] = entry["error"]
            return None
        if "silent" in entry:
            self._silent[key] = str(entry["silent"])
        # The index is a file that anybody may have written: it names nothing outside.
        return self.folder / Path(entry["file"]).name if "file" in entry else None

    def _cut(self, items: Sequence[SampleSource], copied: Collection[str]) -> None:
        refuse_links(self.folder)
        for batch in batches(items):
            self._cut_batch(batch, copied)
        self._cutter.clear()

    def _cut_batch(self, batch: Sequence[SampleSource], copied: Collection[str]) -> None:
        """Cut a batch of clips and give them their final names. Raises PenstockError."""
        clips = self._cutter(batch, copied)
        with disk_faults(self.folder):
            for key in (item.sample.clip for item in batch):
                about: dict[str, Json] = {}
                if (differs := self._cutter.differs.get(key)) is not None:
                    about = {"plain": not differs, "why": differs}
                silent = self._cutter.silent.get(key)
                if key not in clips:
                    why = self._cutter.why.get(key, "")
                    self._index[key] = {"plain": True} if about else {"error": why}
                    continue
                media = clips[key]
                stamp = stamp_of(media.path)
                self._index[key] = {
                    **about,
                    "file": media.path.name,
                    "state": [stamp.size, stamp.modified],
                    **({"silent": silent} if silent else {}),
                }
            write_json(self.folder / INDEX, {"clips": self._index})
            write_text(self.folder / OURS, ())
            for media in clips.values():
                replace_file(media.path, self.folder / media.path.name)


def _key_of_other_sound(item: SampleSource) -> str:
    """Return the key of the same clip with sound if it has none, else without."""
    source = item.sample.made
    other = source.partition(SOUNDING)[0] if SOUNDING in source else source + SOUNDING
    return replace(item.sample, made=other).clip


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    try:
        entry = json.loads(read_text(path, BYTES))["clips"]
        return {str(key): dict(clip) for key, clip in entry.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}

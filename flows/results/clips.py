"""Writes one clip per chunk of longer videos to `OUT/clips`, for trainers that read files. Keeps
clips that are still correct, and clips that a user edited.

`index.json` records the file stamp that each clip had when it was cut. It is written before clips
get their final names, so a clip that the index does not list was not made by a run.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts.disk_names import rules_in
from artifacts.errors import EnvironmentFault
from artifacts.files import HALF, OURS, replace_file, write_json, write_text
from artifacts.json_shapes import BYTES
from artifacts.plurals import counted, first_of
from artifacts.regular_files import read_text, refuse_links
from artifacts.samples import Media, media_suffix
from artifacts.stamps import stamp_of
from artifacts.store import fault_of
from artifacts.trainers import WITH_CLIPS
from flows.console.units import gib
from flows.job.prepare import Job
from flows.machine.launch import Launcher
from flows.media.media_files import Selection
from flows.options.text import OutputOptions
from flows.results.cutting import Cutter, OnProgress, batches
from flows.results.sample_sources import SampleSource

CLIPS, INDEX = "clips", "index.json"
UNREAD = "a format that a trainer does not read"
LEAD_SECONDS = 0.5
"""Lead of a clip before its chunk above which a note is printed."""


def kept_note(names: Sequence[str], folder: Path) -> str:
    """Return a note about user files that were kept in a folder."""
    return (
        f"kept {counted(len(names), 'file')} in {folder} that users wrote or edited "
        f"({first_of(names)}); --existing replace replaces them"
    )


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
        self._replace = OutputOptions.of(job.config).replaces
        self._retry_failed = job.config.retry_failed
        self._index = _read_index(self.folder / INDEX)
        self._cutter = Cutter(job, launcher, on_progress, self.folder / f"{HALF}new")
        self.exact = self._cutter.exact
        self.kept: list[str] = []
        """Names of clips that users edited or added."""
        self.refused: dict[str, str] = {}
        """Key of each sample that could not be cut → why."""
        self.longest_lead = 0.0
        """Maximum seconds from the start of a clip to the start of its chunk."""

    def clips_for(
        self, items: Sequence[SampleSource], copied: Collection[str] = ()
    ) -> dict[str, Path]:
        """Return the key of each sample → its clip. Cuts missing clips. A whole file has none if
        every reader shows it as the model saw it (`stands`), unless it is `copied`, by the clip.
        Raises PenstockError."""
        keys = {item.sample.key: item.sample.clip for item in items}
        by_key = {keys[item.sample.key]: item for item in reversed(items)}
        present = self._present()
        missing = [
            item for key, item in by_key.items() if not self._is_right(key, present, copied)
        ][::-1]
        self._cut(missing, copied)
        found = {key: path for key in by_key if (path := self._clip_path(key)) is not None}
        return {name: found[key] for name, key in keys.items() if key in found}

    def find(self, key: str) -> Media | None:
        """Return an unchanged clip that an earlier run made."""
        entry = self._index.get(key, {})
        path = self._clip_path(key) if "file" in entry else None
        if path is None or not self.made(path, key):
            return None
        suffix, start = media_suffix(path.name), float(entry.get("media_start", 0.0))
        return Media(path=path, suffix=suffix, start=start, clip=key)

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
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in why.most_common())
        yield (
            f"data sets: {counted(len(keys) - len(copies), 'file')} as they are, {len(copies):,} "
            f"as exact copies ({gib(sum(size for _, size in copies.values()))}): {reasons}"
        )

    def notes(self) -> Iterator[str]:
        """Yield notes for the user about the clips."""
        if self.refused:
            why, count = next(iter(self.refused.values())), counted(len(self.refused), "chunk")
            yield f"{count} could not be cut for trainers ({why})"
        if self.kept:
            yield kept_note(self.kept, self.folder)
        if self.longest_lead > LEAD_SECONDS:
            yield (
                f"clips that MP4 cannot hold begin up to {self.longest_lead:.1f} s before their "
                f"chunk, and trainers see that: media_start in {self.folder / INDEX} names them"
            )

    def _present(self) -> dict[str, str]:
        """Return the stem of each file, as the disk tells stems apart → its name."""
        selected = Selection(recursive=False, extensions=())  # and no text or latents beside a clip
        folded = rules_in(self.folder).folded
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            return {
                folded(Path(entry.name).stem): entry.name
                for entry in entries
                if selected.takes(entry.name) and entry.is_file(follow_symlinks=False)
            }
        return {}

    def stands(self, item: SampleSource) -> bool:
        """Return whether every reader shows a whole file as the model saw it."""
        return bool(self._index.get(item.sample.clip, {}).get("plain"))

    def _is_right(self, key: str, present: dict[str, str], copied: Collection[str]) -> bool:
        """Return whether a clip need not be cut: it exists, is a user's, or failed before."""
        entry = self._index.get(key, {})
        if "error" in entry and not self._retry_failed:
            return True
        if entry.get("plain") and "file" not in entry:
            return key not in copied
        name = present.get(rules_in(self.folder).folded(key))
        if name is None:
            return False
        if self.made(self.folder / name, key):
            return True
        if self._replace:
            return False
        self.kept.append(name)
        self._index[key] = {**entry, "file": name}
        return True

    def _clip_path(self, key: str) -> Path | None:
        """Return the clip of a key; None if cutting it failed."""
        entry = self._index.get(key, {})
        if "error" in entry:
            self.refused[key] = entry["error"]
            return None
        self.longest_lead = max(self.longest_lead, entry.get("media_start", 0.0))
        # The index is a file that anybody may have written: it names nothing outside.
        return self.folder / Path(entry["file"]).name if "file" in entry else None

    def _cut(self, items: Sequence[SampleSource], copied: Collection[str]) -> None:
        refuse_links(self.folder)
        for batch in batches(items):
            self._cut_batch(batch, copied)
        self._cutter.clear()

    def _cut_batch(self, batch: Sequence[SampleSource], copied: Collection[str]) -> None:
        """Cut a batch of clips and give them their final names. Raises PenstockError."""
        made = self._cutter(batch, copied)
        try:
            for key in (item.sample.clip for item in batch):
                about: dict[str, Any] = {}
                if (differs := self._cutter.differs.get(key)) is not None:
                    about = {"plain": not differs, "why": differs}
                if key not in made:
                    why = self._cutter.why.get(key, "")
                    self._index[key] = {"plain": True} if about else {"error": why}
                    continue
                media = made[key]
                stamp = stamp_of(media.path)
                self._index[key] = {
                    **about,
                    "file": media.path.name,
                    "media_start": media.start,
                    "state": [stamp.size, stamp.modified],
                }
            write_json(self.folder / INDEX, {"clips": self._index})
            write_text(self.folder / OURS, ())
            for media in made.values():
                replace_file(media.path, self.folder / media.path.name)
        except OSError as error:
            raise fault_of(error, self.folder) from error


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    try:
        entry = json.loads(read_text(path, BYTES))["clips"]
        return {str(key): dict(clip) for key, clip in entry.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}

"""What runs after what in a caption run: frames, encode, decode, wave by wave; the same with and
without Prefect."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.captions import Failure
from artifacts.errors import Interrupted, PenstockError, StageDied
from artifacts.packs import DamagedRecord, Record
from flows.dataset import write_dataset
from flows.launch import Launcher, Running, StageCall
from flows.ledger import Medium, Task, decode_batches, encode_batches
from flows.models import cores
from flows.outputs import write_outputs
from flows.precision import HalfSettings
from flows.prepare import Job
from flows.run_record import RunRecord
from flows.sizes import media_bytes, wave_limit
from flows.weights import halves_wanted
from stages.models.card import HalfCard
from stages.process.ending import is_crash

if TYPE_CHECKING:  # it imports torch
    from stages.models.boundary import Half

FRAMES_A_BATCH = 64
"""The encode stage takes fewer chunks a batch when they hold more frames than this together."""
KEY_OF = {"frames": "frames", "encode": "features", "decode": "caption"}
"""Stage → the field of a task that holds the key of what it makes."""
REMAKES = 3
"""How often a wave is gone through again because a stored record was found damaged."""


@dataclass(kw_only=True, slots=True)
class RunResult:
    """How a run ended."""

    out: Path
    files: int
    """Files and sources that were asked for."""
    captions: int = 0
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 all captioned · 1 some items failed · 2 nothing was left to caption."""
        if not self.failures:
            return 0
        return 1 if self.captions else 2

    def line(self) -> str:
        """The outcome in one line."""
        failed = f", {len(self.failures)} of {self.files} files failed" if self.failures else ""
        return f"{self.captions} captions in {self.out / 'captions.jsonl'}{failed}"


class Sequence:
    """One run over one job. `tell(stage, total, done)` is called before each stage starts, and
    `fetch(halves)` before each that uses weights."""

    def __init__(
        self,
        job: Job,
        launcher: Launcher,
        record: RunRecord,
        tell: Callable[[str, int, int], None],
        fetch: "Callable[[Collection[Half]], None]",
    ) -> None:
        self._job = job
        self._launcher = launcher
        self._record = record
        self._tell = tell
        self._fetch = fetch
        self._ahead: Running | None = None

    def run(self) -> RunResult:
        """Bring every item to its caption; raises what stopped the run, after writing what is
        there."""
        job = self._job
        self._forget_failures()
        result = RunResult(out=job.out, files=len(job.files) + len(job.failures))
        try:
            # All that will be wanted, so that a hub that cannot be reached is known before hours of
            # work and not in the middle.
            self._fetch(halves_wanted(job.ledger, job.media))
            waves = job.ledger.waves(job.media, media_bytes(job), wave_limit(job))
            for number, wave in enumerate(waves):
                following = waves[number + 1] if number + 1 < len(waves) else []
                self._wave(wave, following)
                self._write(result, last=not following)
            if "webdataset" in job.config.format:
                result.warnings += write_dataset(job, self._launcher, self._tell)
        except BaseException as error:
            self._stop_ahead()
            stopped = isinstance(error, Interrupted) or not isinstance(error, Exception)
            with contextlib.suppress(PenstockError):  # such as a full disk, which is told already
                self._job.ledger.refresh()
                self._write(result, last=True)
                self._record.finish("interrupted" if stopped else "failed", error=str(error))
            raise
        self._record.finish("done")
        return result

    def _wave(self, wave: list[Medium], following: list[Medium]) -> None:
        for attempt in range(REMAKES):
            try:
                self._frames(wave)
                if attempt == 0:
                    self._ahead = self._start_frames(following)
                self._encode(wave)
                self._decode(wave)
                return
            except DamagedRecord:
                if attempt + 1 == REMAKES:
                    raise
                self._job.ledger.refresh()

    def _frames(self, wave: list[Medium]) -> None:
        running, self._ahead = self._ahead, None
        if running is not None:
            self._finish_frames(running, wave)
        while (running := self._start_frames(wave)) and self._finish_frames(running, wave):
            pass

    def _finish_frames(self, running: Running, wave: list[Medium]) -> bool:
        """Whether it crashed. Then one of the media in hand is to blame, which each tells alone."""
        try:
            self._finish(running)
        except StageDied as error:
            suspects = [m for m in wave if m.digest in running.outcome.in_hand]
            if not is_crash(error) or not suspects:
                raise
            self._job.ledger.refresh()
            for medium in suspects:
                self._cut_alone(medium)
            return True
        self._job.ledger.refresh()
        return False

    def _cut_alone(self, medium: Medium) -> None:
        """Cut one medium in a process of its own, and record it as failed if that crashes."""
        running = self._start_frames([medium])
        if running is None:
            return
        try:
            self._finish(running)
        except StageDied as error:
            if not is_crash(error):
                raise
            meta = {
                "kind": "crash",
                "message": "the library that decodes the file crashed over it, or never ended",
                "hint": "Convert it, for example to H.264 in MP4",
            }
            self._job.ledger.failures.publish([Record(key=medium.digest, meta=meta)])
        self._job.ledger.refresh()

    def _start_frames(self, wave: list[Medium]) -> Running | None:
        job = self._job
        wanted = {m.digest: (m, job.ledger.frames_wanted(m)) for m in wave}
        media = [
            {"path": m.path, "digest": m.digest, "kind": m.kind, "wanted": chunks}
            for m, chunks in wanted.values()
            if chunks is None or chunks
        ]
        if not media:
            return None
        self._tell("frames", len(media), 0)
        arguments = {
            "store": job.store.url,
            "scope": job.ledger.scopes.frames,
            "sampling": asdict(job.sampling),
            "fit": {kind: job.model.fit(kind).long_edges for kind in ("video", "image")},
            "media": media,
            "workers": cores(),
        }
        return self._launcher.start(self._call("frames", arguments, device="cpu"))

    def _encode(self, wave: list[Medium]) -> None:
        job = self._job
        tasks = job.ledger.tasks(wave)
        needed = {t.features for t in tasks if t.caption not in job.ledger.captions}
        missing = needed - job.ledger.features.keys() - job.ledger.refused.keys()
        have = job.ledger.frames.keys()
        batches = [
            # Whole, so that the bytes are those of an undisturbed run; without what an earlier
            # command finished, whose frames are gone.
            [task for task in batch if task.features in missing or task.frames in have]
            for batch in encode_batches(tasks, job.config.batch_size, FRAMES_A_BATCH)
            if any(task.features in missing for task in batch)
        ]
        if batches:
            self._fetch(["vision"])
            self._tell("encode", len(needed), len(needed) - len(missing))
            entries = [[self._to_encode(t) for t in b] for b in batches]
            arguments = {
                **self._half(job.model.vision, job.model.card.vision),
                "frames_scope": job.ledger.scopes.frames,
                "scope": job.ledger.scopes.features,
                "batches": entries,
            }
            self._finish(self._launcher.start(self._call("encode", arguments)))
            job.ledger.refresh()
        if not job.config.keep_frames:
            done = job.ledger.features.keys() | job.ledger.refused.keys()
            job.ledger.frames.drop([t.frames for t in tasks if t.features in done])

    def _decode(self, wave: list[Medium]) -> None:
        job = self._job
        tasks = [t for t in job.ledger.tasks(wave) if t.features not in job.ledger.refused]
        missing = {t.caption for t in tasks} - job.ledger.captions.keys()
        have = job.ledger.features.keys()
        if not missing:
            return
        batches = [
            [task for task in batch if task.caption in missing or task.features in have]
            for batch in decode_batches(tasks, job.ledger.lengths(tasks), job.config.batch_size)
            if any(task.caption in missing for task in batch)
        ]
        self._fetch(["language"])
        self._tell("decode", len(tasks), len(tasks) - len(missing))
        entries = [
            [_entry(t, key=t.caption, features=t.features, prompt=t.medium.prompt) for t in b]
            for b in batches
        ]
        arguments = {
            **self._half(job.model.language, job.model.card.language),
            "features_scope": job.ledger.scopes.features,
            "scope": job.ledger.scopes.captions,
            "max_new_tokens": job.config.max_new_tokens,
            "batches": entries,
        }
        self._finish(self._launcher.start(self._call("decode", arguments)))
        job.ledger.refresh()

    def _to_encode(self, task: Task) -> dict[str, str]:
        seen = {"prompt": task.medium.prompt} if self._job.model.card.prompted else {}
        return _entry(task, key=task.features, frames=task.frames, **seen)

    def _half(self, half: HalfSettings, card: HalfCard) -> dict[str, Any]:
        model = self._job.model
        return {
            "store": self._job.store.url,
            "model": str(model.folder),
            "revision": None,
            "device": self._job.device,
            "dtype": half.dtype,
            "precision": half.precision,
            "attention": half.attention,
            "trust_remote_code": self._job.config.trust_remote_code,
            "route": model.card.route,
            "pieces": card.pieces,
        }

    def _call(self, name: str, arguments: dict[str, Any], device: str = "") -> StageCall:
        log = self._job.out / "logs" / f"{name}.log"
        return StageCall(name=name, arguments=arguments, device=device or self._job.device, log=log)

    def _finish(self, running: Running) -> None:
        model = self._job.model
        try:
            running.wait()
        except BaseException:
            running.stop()
            raise
        finally:
            halves = {"encode": model.vision, "decode": model.language}
            half = halves.get(running.outcome.name)
            attention = half.attention if half else ""
            self._record.add(running.outcome, attention=attention, precision=model.precision())

    def _write(self, result: RunResult, *, last: bool) -> None:
        written = write_outputs(self._job, last=last)
        result.captions, result.failures, result.warnings = written
        media = {"total": result.files, "failed": len(result.failures)}
        self._record.value.update(media=media, captions=result.captions)
        ledger = self._job.ledger
        tasks = ledger.tasks(self._job.media)
        done = {"encode": ledger.features.keys(), "decode": ledger.captions.keys()}
        for stage, key in KEY_OF.items():
            keys = {getattr(task, key) for task in tasks}
            self._record.expect(stage, len(keys), len(keys & done.get(stage, keys)))

    def _forget_failures(self) -> None:
        if self._job.config.retry_failed:
            self._job.ledger.forget_failures(self._job.media)

    def _stop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None


def _entry(task: Task, **values: str) -> dict[str, str]:
    return {"kind": task.medium.kind, **values}

"""What each stage of a run is told, and what its death means; knows not what runs after what."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from artifacts.errors import StageDied
from artifacts.packs import Record
from flows.holds import Hold
from flows.launch import Launcher, Running, StageCall
from flows.ledger import Medium, Task, decode_batches, encode_batches
from flows.models import cores
from flows.precision import HalfSettings
from flows.prepare import Job
from flows.run_record import RunRecord
from stages.models.card import HalfCard
from stages.process.ending import is_crash

if TYPE_CHECKING:  # it imports torch
    from stages.models.halves.boundary import Half

FRAMES_A_BATCH = 64
"""The encode stage takes fewer chunks a batch when they hold more frames than this together."""


class Steps:
    """The stages of one job. `tell(stage, total, done)` is called before each starts, and
    `fetch(halves)` before each that uses weights."""

    def __init__(
        self,
        job: Job,
        launcher: Launcher,
        record: RunRecord,
        tell: Callable[[str, int, int], None],
        fetch: "Callable[[Collection[Half]], None]",
        hold: Hold,
    ) -> None:
        self._job = job
        self.launcher = launcher
        self._record = record
        self.tell = tell
        self.fetch = fetch
        self._hold = hold
        self._ahead: Running | None = None

    def frames(self, wave: list[Medium]) -> None:
        """Cut what a wave has no frames of yet."""
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
        self.tell("frames", len(media), 0)
        arguments = {
            "store": job.store.url,
            "scope": job.ledger.scopes.frames,
            "sampling": asdict(job.sampling),
            "fit": {kind: job.model.fit(kind).long_edges for kind in ("video", "image")},
            "media": media,
            "workers": cores(),
        }
        return self.launcher.start(self._call("frames", arguments, device="cpu"))

    def encode(self, wave: list[Medium]) -> None:
        """Make the features of a wave, and give its frames back."""
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
            self.fetch(["vision"])
            self.tell("encode", len(needed), len(needed) - len(missing))
            entries = [[self._to_encode(t) for t in b] for b in batches]
            arguments = {
                **self._half(job.model.vision, job.model.card.vision),
                "frames_scope": job.ledger.scopes.frames,
                "scope": job.ledger.scopes.features,
                "frames_a_video": job.model.card.frames_a_video,
                "batches": entries,
            }
            self._finish(self.launcher.start(self._call("encode", arguments)))
            job.ledger.refresh()
        self.give_back(wave)

    def give_back(self, media: Sequence[Medium]) -> None:
        """Delete frames that are encoded, unless they are to be kept or another running job looks
        at them too, which would have to cut them again."""
        job = self._job
        if job.config.keep_frames or self._hold.shares(job.ledger.scopes.frames):
            return
        done = job.ledger.features.keys() | job.ledger.refused.keys()
        job.ledger.frames.drop(t.frames for t in job.ledger.tasks(media) if t.features in done)

    def decode(self, wave: list[Medium]) -> None:
        """Make the captions of a wave."""
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
        self.fetch(["language"])
        self.tell("decode", len(tasks), len(tasks) - len(missing))
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
        self._finish(self.launcher.start(self._call("decode", arguments)))
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
        device = device or self._job.device
        allowed = self._job.budget.of_stage(device)
        return StageCall(name=name, arguments=arguments, device=device, log=log, budget=allowed)

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

    def begin_frames(self, wave: list[Medium]) -> None:
        """Cut the frames of a wave while another one is encoded."""
        self._ahead = self._start_frames(wave)

    def stop_ahead(self) -> None:
        """End what was begun for the next wave."""
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None


def _entry(task: Task, **values: str) -> dict[str, str]:
    return {"kind": task.medium.kind, **values}

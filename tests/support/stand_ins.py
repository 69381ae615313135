"""Stages that answer at once, for tests of what runs after what: frames are really cut, the rest is
told from keys."""

from collections.abc import Callable
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from artifacts.errors import Interrupted
from artifacts.frame_fit import FrameFit
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from flows.core.machine.launch import StageCall
from flows.core.options.commands import CaptionConfig
from stages.models.profile import ModelProfile, PartProfile, SamplingProfile
from stages.process.events import (
    Answered,
    Event,
    EventReporter,
    Failed,
    StageNotes,
    StageOutcome,
    answered_keys,
)
from stages.process.job import job_fields
from stages.process.stage_process import Listener

HALF = PartProfile(shards=("model.safetensors",), tensors=(), parameters=1, stored_bytes=2)
PROFILE = ModelProfile(
    folder="",
    class_name="Any",
    model_type="any",
    modalities=("video", "image"),
    dtype="float32",
    parts={"vision": HALF, "language": HALF},
    sampling=SamplingProfile(fps=2.0, max_frames=8),
    fit_video=FrameFit(),
    fit_image=FrameFit(),
    feature_width=8,
    image_tokens=4,
    frame_tokens=4,
)


def config_in(root: Path, sources: Path, **options: Any) -> CaptionConfig:
    """A run over `sources` with all else below `root`, and a model of two files."""
    (root / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (root / "model" / name).write_text("{}")
    return CaptionConfig(
        sources=(str(sources),),
        model=str(root / "model"),
        out=str(root / "out"),
        store=str(root / "store"),
        **options,
    )


def flat(call: StageCall) -> dict[str, Any]:
    """The arguments of a call, those of its half among them."""
    return {**job_fields(call.job).get("half", {}), **job_fields(call.job)}


class Stages:
    """Stands for the child processes: frames are really cut, features and captions are told from
    their keys. `stop_after` ends the named stage after so many items, as a kill would."""

    def __init__(self) -> None:
        self.calls: list[StageCall] = []
        self.profile = PROFILE
        self.stop_after: dict[str, int] = {}
        self.refuse_first = False
        self.feature_payload = b""

    def launcher(self, _: Listener) -> "Stages":
        return self

    def start(self, call: StageCall) -> "Answer":
        stays = bool(job_fields(call.job).get("requests"))
        if stays and call.name != "frames":  # encodes nothing while frames are cut
            return Answer(StageOutcome(name=call.name), lambda made: made)
        self.calls.append(call)
        if stays:
            return OnThread(StageOutcome(name=call.name), lambda made: self._answer(call, made))
        return Answer(StageOutcome(name=call.name), lambda made: self._answer(call, made))

    def names(self) -> list[str]:
        return [call.name for call in self.calls if call.name != "describe"]

    def batches(self, stage: str) -> list[list[str]]:
        """Keys of the batches that a stage was told, call after call."""
        messages = [job_fields(call.job)["batches"] for call in self.calls if call.name == stage]
        return [[member.key for member in batch] for batches in messages for batch in batches]

    def _answer(self, call: StageCall, outcome: StageOutcome) -> StageOutcome:
        if call.name == "describe":
            outcome.notes["profile"] = self.profile.to_json()
        elif call.name == "frames":
            import stages.frames.run

            heard = Heard(outcome)
            stages.frames.run.run(job_fields(call.job), heard)
        elif call.name == "cut":
            import stages.frames.cut

            stages.frames.cut.run(job_fields(call.job), Heard(outcome))
        else:
            self._make(call, outcome)
        return outcome

    def _make(self, call: StageCall, outcome: StageOutcome) -> None:
        kind = {"encode": "features", "decode": "captions"}[call.name]
        store = open_store(job_fields(call.job)["store"])
        record_set = RecordSet(store, kind, job_fields(call.job)["namespace"])
        if call.name == "encode":
            frames = RecordSet(store, "frames", job_fields(call.job)["frames_namespace"])
            assert all(m.frames in frames for b in job_fields(call.job)["batches"] for m in b)
        if call.name == "encode" and self.refuse_first:
            refused = RecordSet(store, "failures", job_fields(call.job)["namespace"])
            why = {"kind": "refused", "message": "too narrow", "hint": "Widen it"}
            keys = [m.key for batch in job_fields(call.job)["batches"] for m in batch][:1]
            refused.publish([Record(key=key, meta=why) for key in keys])
            record_set = Without(record_set, keys)  # type: ignore[assignment]
        for batch in job_fields(call.job)["batches"]:
            if outcome.items >= self.stop_after.get(call.name, 10**9):
                raise Interrupted(f"{call.name} was killed")
            meta = {"caption": "something", "tokens": 1, "ended": "stop"}
            payload = self.feature_payload if call.name == "encode" else b""
            made = [Record(key=m.key, meta=meta, payload=payload) for m in batch]
            outcome.items += len(record_set.publish(made))


class Without:
    """A record set that some keys are never put on."""

    def __init__(self, record_set: RecordSet, keys: list[str]) -> None:
        self._record_set = record_set
        self._keys = keys

    def publish(self, records: list[Record]) -> list[str]:
        return self._record_set.publish([r for r in records if r.key not in self._keys])


class Answer:
    """A stage that does its work when it is waited for."""

    def __init__(self, outcome: StageOutcome, work: Callable[[StageOutcome], StageOutcome]) -> None:
        self.outcome = outcome
        self._work = work

    def wait(self) -> StageOutcome:
        return self._work(self.outcome)

    def wait_for_exit(self, seconds: float) -> bool:
        return True

    def stop(self) -> None:
        pass


class OnThread(Answer):
    """A stage that works on a thread, and ends when it is sent the end."""

    def __init__(self, outcome: StageOutcome, work: Callable[[StageOutcome], StageOutcome]) -> None:
        super().__init__(outcome, work)
        self._done = ThreadPoolExecutor(1).submit(work, outcome)

    def wait(self) -> StageOutcome:
        return self._done.result()

    def wait_for_exit(self, seconds: float) -> bool:
        return bool(futures.wait([self._done], seconds).done)


class Heard(EventReporter):
    """A report that counts, and hears nothing else."""

    def __init__(self, outcome: StageOutcome) -> None:
        super().__init__(-1)
        self._outcome = outcome

    def send(self, event: Event) -> None:
        self.on_answer(keys := answered_keys(event))
        self._outcome.answered.update(keys)
        match event:
            case Answered():
                self._outcome.items += len(event.keys)
            case StageNotes():
                self._outcome.notes.update(event.values)
            case Failed():
                self._outcome.failures.append(event)

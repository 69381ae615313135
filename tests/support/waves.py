"""A wave of clips in a store, run through the encode and decode stages in this process."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from artifacts.schema import ChunkIndex
from penstock_demo import CHECKPOINT
from stages.decode.generation import DecodeItem, DecodeJob
from stages.decode.run import run as decode
from stages.encode import EncodeJob
from stages.encode.run import run as encode
from stages.memory.oom_retry import ItemFault, ItemFaults
from stages.models.encoding import EncodeItem
from stages.models.processors.blank_clips import Clip
from stages.process.events import Event, EventReporter, answered_keys
from stages.process.requests import End, Make, RequestPipe
from tests.support.builders.jobs import own_of
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import PROMPTS, clips
from tests.support.families import BUILDERS, checkpoint, made_once

FRAMES, FEATURES, CAPTIONS = "aa" * 32, "bb" * 32, "cc" * 32
OTHER, THIRD = "dd" * 32, "ee" * 32
"""Namespaces of further captions."""
SECONDS = 60.0
OFFSET = 30.0
"""Seconds at which every clip begins in its medium: chunks count from their own start."""


class Wave:
    """Clips under the keys `frames-N`, cut into batches."""

    def __init__(
        self, store: Path, model: Path, batches: Sequence[Sequence[Clip]], **settings: Any
    ) -> None:
        self.store = str(store)
        self.model = str(model)
        self.settings = settings
        """What else the jobs of both stages say, such as `dtype`."""
        numbered = iter(range(sum(map(len, batches))))
        self.batches = [[(next(numbered), clip) for clip in batch] for batch in batches]
        record_set = self.record_set("frames", FRAMES)
        record_set.publish([_frames(n, clip) for batch in self.batches for n, clip in batch])

    def record_set(self, kind: str, namespace: str) -> RecordSet:
        return RecordSet(open_store(self.store), kind, namespace)

    def encode(self) -> list[dict[str, Any]]:
        """Run the stage; returns the events it told."""
        return told_by(encode, self.to_encode())

    def to_encode(self) -> dict[str, Any]:
        """The job of the encode stage."""
        batches = [
            [EncodeItem(f"features-{n}", f"frames-{n}", c.kind) for n, c in batch]
            for batch in self.batches
        ]
        job = self._job(frames_namespace=FRAMES, namespace=FEATURES, batches=batches)
        return own_of(EncodeJob, job)

    def decode(
        self, prompts: Sequence[str], namespace: str = CAPTIONS, tokens: int = 8
    ) -> list[dict[str, Any]]:
        """Run the stage with a prompt a clip; returns the events it told."""
        return told_by(decode, self.to_decode(prompts, namespace, tokens))

    def to_decode(
        self, prompts: Sequence[str], namespace: str = CAPTIONS, tokens: int = 8
    ) -> dict[str, Any]:
        """The job of the decode stage."""
        limit = {"max_new_tokens": tokens}
        job = self._job(features_namespace=FEATURES, namespace=namespace, batches=[], **limit)
        job["batches"] = [
            [
                DecodeItem(f"caption-{n}", f"features-{n}", prompts[n % len(prompts)])
                for n, _ in batch
            ]
            for batch in self.batches
        ]
        return own_of(DecodeJob, job)

    def captions(self, namespace: str = CAPTIONS) -> list[dict[str, Any]]:
        record_set = self.record_set("captions", namespace)
        return [record_set.meta(f"caption-{n}") for batch in self.batches for n, _ in batch]

    def _job(self, **values: Any) -> dict[str, Any]:
        model = {"model": self.model, "revision": None, "device": "cpu", "dtype": "float32"}
        rest = {"attention": "sdpa", "trust_remote_code": False, "engine": "transformers"}
        job: dict[str, Any] = json.loads(
            json.dumps({"store": self.store, **model, **rest, **self.settings, **values})
        )
        return job


def encoded_wave(store: Path, model: Path, *batches: Sequence[Clip], **settings: Any) -> Wave:
    """A wave whose features are there."""
    wave = Wave(store, model, batches, **settings)
    wave.encode()
    return wave


def folder_of(name: str) -> Path:
    """The demo's checkpoint, or a tiny one of a family of either kind."""
    if name == "demo":
        return CHECKPOINT
    return checkpoint(name) if name in BUILDERS else whole_checkpoint(name)


def mixed() -> list[Clip]:
    """Clips whose prompts are of four lengths."""
    small = clips("video", 3, frames=8, height=64, width=64)
    return [*small, *clips("video", 3), *clips("video", 2, frames=8), *clips("image", 2)]


@made_once
def _mixed_store(folder: Path, dtype: str) -> None:
    in_slots(encoded_wave(folder, CHECKPOINT, mixed(), dtype=dtype), CAPTIONS)


def mixed_wave(folder: Path, size: int = 10, dtype: str = "float32") -> Wave:
    """A wave of `mixed` in batches of so many for the demo's model, encoded; what it says in slots
    is in the store as CAPTIONS."""
    shutil.copytree(_mixed_store(dtype), folder / "store")
    every = mixed()
    batches = [every[at : at + size] for at in range(0, len(every), size)]
    return Wave(folder / "store", CHECKPOINT, batches, dtype=dtype)


def in_slots(wave: Wave, scope: str = OTHER, **settings: Any) -> list[dict[str, Any]]:
    """Run the decode stage with the engine of slots; returns the events it told."""
    wave.settings |= {"engine": "inflight", **settings}
    return wave.decode(PROMPTS, scope, tokens=32)


def words(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, str]]:
    return [(one["caption"], one["tokens"], one["ended"]) for one in found]


def captions_of(found: Sequence[Mapping[str, Any]]) -> list[str]:
    return [one["caption"] for one in found]


def noted(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: value
        for event in messages
        if event["event"] == "StageNotes"
        for name, value in event.items()
    }


def no_faults() -> ItemFaults:
    """Raise for an item on which the model's code raises."""

    def refuse(item: Any, fault: ItemFault) -> None:
        raise AssertionError(f"{item}: {fault}")

    return ItemFaults("test", refuse)


@contextmanager
def events() -> Iterator[tuple[EventReporter, list[dict[str, Any]]]]:
    """A report, and the list that its events are in once the block ends."""
    messages: list[dict[str, Any]] = []
    descriptor = os.memfd_create("events")
    try:
        yield EventReporter(descriptor), messages
    finally:
        text = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
        messages.extend(json.loads(line) for line in text.splitlines())
        os.close(descriptor)


def told_by(
    stage: Callable[[dict[str, Any], EventReporter], object], job: dict[str, Any]
) -> list[dict[str, Any]]:
    """Run a stage; returns the events it told."""
    with events() as (report, message):
        stage(job, report)
    return message


def answers_to(
    stage: Callable[[dict[str, Any], EventReporter], object],
    job: dict[str, Any],
    pipe: Path,
    items: Sequence[Any],
) -> list[dict[str, Any]]:
    """Send items to a stage, and tell it to end once each has an answer; return the events it told.
    Fails if an answer does not come while the stage runs."""
    feed, left, complete = RequestPipe(pipe), {item.key for item in items}, threading.Event()

    def send(event: Event) -> None:
        sent(event)
        left.difference_update(answered_keys(event))
        if not left:
            complete.set()

    def work() -> None:
        stage({**job, "batches": [], "requests": str(pipe)}, report)

    with closing(feed), events() as (report, messages):
        sent = report.send
        report.send = send  # type: ignore[method-assign]
        running = threading.Thread(target=work, daemon=True)
        running.start()
        feed.send(Make(batches=[items]))
        assert feed.write()
        came = complete.wait(SECONDS)
        feed.send(End())
        assert feed.write()
        running.join(SECONDS)
        assert came and not running.is_alive(), f"no answer to {sorted(left)}"
    return messages


def work_sent(
    stage: Callable[[dict[str, Any], EventReporter], object], job: dict[str, Any], pipe: Path
) -> None:
    """Send a stage the batches of a job, and nothing more: it waits for the next message until an
    error ends it. Raises that error; fails if the stage goes on waiting."""
    feed, sent = RequestPipe(pipe), {**job, "batches": [], "requests": str(pipe)}
    with closing(feed), events() as (report, _), ThreadPoolExecutor(1) as pool:
        running = pool.submit(stage, sent, report)
        feed.send(Make(batches=job["batches"]))
        assert feed.write()
        try:
            running.result(SECONDS)
        finally:
            feed.send(End())
            assert feed.write()


def keys_told(messages: Sequence[dict[str, Any]]) -> list[str]:
    return [key for event in messages if event["event"] == "Answered" for key in event["keys"]]


def returned(messages: Sequence[dict[str, Any]]) -> list[str]:
    """The keys that a stage left to others."""
    return [key for event in messages if event["event"] == "Returned" for key in event["keys"]]


def _frames(number: int, clip: Clip) -> Record:
    chunk = ChunkIndex(
        index=number,
        start=OFFSET,
        end=OFFSET + clip.seconds,
        times=tuple(OFFSET + time for time in clip.times),
        height=clip.frames.shape[1],
        width=clip.frames.shape[2],
    )
    meta = {name: getattr(chunk, name) for name in chunk.__dataclass_fields__}
    return Record(key=f"frames-{number}", meta=meta, payload=clip.frames.tobytes())

"""One way of captioning the clips of a store, in a process of its own that times itself and is kept
to its budget as a stage's is.

`joint` is the whole model by stock `generate`; `encode` and `decode` are the real stages.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from artifacts.errors import CannotFit, PenstockError
from artifacts.records.packs import RecordSet
from artifacts.records.store import open_store
from stages.process.events import BatchShrunk, Event, EventReporter, TooLarge
from stages.process.memory import Sampler, anonymous_bytes
from stages.process.stage_process import ProcessSettings, StageProcess
from tests.support.builders.jobs import made_job


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one process did."""

    whole_seconds: float = 0.0
    """From before the process is started to after it ended."""
    seconds: float = 0.0
    """After the weights are there, to the end: the steady state."""
    cpu_seconds: float = 0.0
    """CPU time in those seconds, of all threads."""
    marks: tuple[tuple[float, float, int], ...] = ()
    """At each item: seconds and CPU seconds since the weights were there, and the highest memory so
    far in bytes, which is anonymous memory above what the libraries take."""
    texts: tuple[str, ...] = ()
    """Captions, where the mode makes them without a store."""
    died: str = ""
    """Why it did not finish within its budget; empty when it did."""


def run_mode(mode: str, job: dict[str, Any], budget: int | None = None) -> Outcome:
    """Run a mode over a job; within `budget` bytes above what the libraries take, if given.
    Raises RuntimeError when it fails for another reason than memory."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        settings = ProcessSettings(
            name=mode,
            job=made_job(**job, mode=mode),
            device="cpu",
            log=Path(folder, "log"),
            budget=budget or 0,
        )
        process = StageProcess(settings, "tests.support.builders.modes:run", lambda *_: None)
        try:
            found = process.wait().notes["outcome"]
        except PenstockError as error:
            if budget is None or not isinstance(error, CannotFit):
                raise RuntimeError(f"{mode} failed: {error}") from error
            found = {"died": error.message}
        return Outcome(**{**found, "whole_seconds": time.monotonic() - started})


class Watch(EventReporter):
    """Takes what a stage reports, and looks at the clock and at the memory."""

    def __init__(self, baseline: int) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self._baseline = baseline
        self._memory = Sampler("cpu")
        self.marks: list[tuple[float, float, int]] = []
        self.started = self.loaded = time.monotonic()
        self.cpu = 0.0
        self.died = ""

    def __enter__(self) -> Self:
        self._memory.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._memory.__exit__(*exc)

    def note(self, **values: Any) -> None:
        """The stages tell what they loaded once it is loaded."""
        if "attention" in values:
            self.loaded, self.cpu = time.monotonic(), time.process_time()

    def answered(self, *keys: str, **values: Any) -> None:
        self._memory.sample()
        since = time.monotonic() - self.loaded, time.process_time() - self.cpu
        self.marks.append((*since, self._memory.peak_host_bytes - self._baseline))

    def send(self, event: Event) -> None:
        """Note whether a batch or an item did not fit."""
        if isinstance(event, BatchShrunk | TooLarge):
            self.died = self.died or event.error


def joint(job: dict[str, Any], watch: Watch) -> list[str]:
    """The whole model in one process: load, processor, `generate`."""
    import torch
    from transformers import AutoModelForImageTextToText

    from stages.models.encoding import EncodeItem
    from stages.models.encoding.run import read_clip
    from stages.models.halves.ranged_reads import ranged_reads
    from stages.models.processors.loading import load_processor
    from tests.support.builders.jobs import whole as inputs_of

    load: Any = AutoModelForImageTextToText.from_pretrained
    with ranged_reads():
        model = load(job["model"], dtype=getattr(torch, job["dtype"])).eval()
    processor = load_processor(Path(job["model"]))
    watch.note(attention=model.config._attn_implementation)
    frames = RecordSet(open_store(job["store"]), "frames", job["frames_namespace"])
    texts = []
    for batch in job["batches"]:
        clips = [read_clip(frames, EncodeItem("", m["frames"], m["kind"])) for m in batch]
        inputs = inputs_of(processor, clips, [member["prompt"] for member in batch])
        with torch.inference_mode():
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=job["max_new_tokens"])
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
        for member in batch:
            watch.answered(member["key"])
    return texts


def encode(job: dict[str, Any], watch: Watch) -> list[str]:
    from stages.encode import EncodeJob
    from stages.encode.run import run
    from stages.models.encoding import EncodeItem
    from tests.support.builders.jobs import items_of_own, own_of

    run(own_of(EncodeJob, {**job, "batches": items_of_own(EncodeItem, job["batches"])}), watch)
    return []


def decode(job: dict[str, Any], watch: Watch) -> list[str]:
    from stages.decode.generation import DecodeItem, DecodeJob
    from stages.decode.run import run
    from tests.support.builders.jobs import items_of_own, own_of

    batches = items_of_own(DecodeItem, job["batches"])
    run(own_of(DecodeJob, {"engine": "transformers", **job, "batches": batches}), watch)
    captions = RecordSet(open_store(job["store"]), "captions", job["namespace"])
    return [captions.meta(m["key"])["caption"] for batch in job["batches"] for m in batch]


MODES: dict[str, Callable[[dict[str, Any], Watch], list[str]]] = {
    "joint": joint,
    "encode": encode,
    "decode": decode,
}


def warm(job: dict[str, Any]) -> None:
    """Import all that any mode imports: what that takes is no mode's."""
    import stages.decode.engines.transformers
    import stages.decode.run
    import stages.encode.run  # noqa: F401
    from stages.encode import EncodeJob
    from stages.models.loading import warm as load
    from tests.support.builders.jobs import own_of

    load(own_of(EncodeJob, job))


def run(job: dict[str, Any], report: EventReporter) -> None:
    """Run a mode as a stage."""
    report.note(outcome=asdict(perform(job["mode"], job)))


def perform(mode: str, job: dict[str, Any]) -> Outcome:
    """Run a mode in this process."""
    with Watch(anonymous_bytes()) as watch:
        texts = MODES[mode](job, watch)
        ended, cpu = time.monotonic(), time.process_time()
    return Outcome(
        whole_seconds=ended - watch.started,
        seconds=ended - watch.loaded,
        cpu_seconds=cpu - watch.cpu,
        marks=tuple(watch.marks),
        texts=tuple(texts),
        died=watch.died,
    )

"""One way of captioning the clips of a store, in a process of its own that times itself:
`python -m benchmarks._modes SPEC.json`.

`joint` is the whole model by stock `generate`; `encode` and `decode` are the real stages; `pure` is
decoding with everything in memory already. It knows nothing of what is compared with what.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from artifacts.packs import Shelf
from artifacts.store import open_store
from stages.process.memory import anonymous_bytes
from stages.process.report import Report
from stages.process.stage_process import child_environment

LOOK_SECONDS = 0.02
STUCK_SECONDS = 120.0
"""Libraries that get no memory for a thread may wait for it for ever; one batch takes seconds."""
MEMORY_WORDS = ("allocate", "MemoryError", "bad_alloc", "hread", "create a primitive")
"""What stands in the last words of whoever gets no memory, or no stack for a thread; the last is
oneDNN's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one process did."""

    whole_seconds: float = 0.0
    """From before the process is started to after it ended."""
    seconds: float = 0.0
    """After the weights are there, to the end: the steady state."""
    cpu_seconds: float = 0.0
    """CPU time in those seconds, of all threads."""
    generate_seconds: float = 0.0
    """Of them, in `generate`."""
    marks: tuple[tuple[float, float, int], ...] = ()
    """At each item: seconds and CPU seconds since the weights were there, and the highest memory so
    far in bytes, which is anonymous memory above what the libraries take and mapped weights."""
    texts: tuple[str, ...] = ()
    """Captions, where the mode makes them without a store."""
    died: str = ""
    """Why it did not finish within its budget; empty when it did."""


def run_mode(mode: str, job: dict[str, Any], budget: int | None = None) -> Outcome:
    """Run a mode over a job; within `budget` bytes above what the libraries take, if given.
    Raises RuntimeError when it fails for another reason than memory."""
    with tempfile.TemporaryDirectory() as name:
        spec, answer = Path(name, "spec.json"), Path(name, "answer.json")
        spec.write_text(json.dumps({"mode": mode, "job": job, "budget": budget, "to": str(answer)}))
        started = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks._modes", str(spec)],
                env=child_environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=None if budget is None else STUCK_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return Outcome(died=f"it did not end in {STUCK_SECONDS:.0f} s")
        whole = time.monotonic() - started
        if answer.exists():
            found = json.loads(answer.read_text())
            return Outcome(**{**found, "whole_seconds": whole})
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    if budget is None or not (done.returncode < 0 or any(w in last for w in MEMORY_WORDS)):
        raise RuntimeError(f"{mode} failed: {done.stderr}")
    return Outcome(whole_seconds=whole, died=last)


class Watch(Report):
    """Takes what a stage reports, and looks at the clock and at the memory."""

    def __init__(self, baseline: int, limit: int | None) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self._baseline = baseline
        self._limit = limit
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._mapped = 0
        self._peak = 0
        self.marks: list[tuple[float, float, int]] = []
        self.started = self.loaded = time.monotonic()
        self.cpu = 0.0
        self.generating = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def note(self, **values: Any) -> None:
        """The stages tell what they loaded once it is loaded."""
        if "attention" in values:
            self._mapped = mapped_bytes()
            if self._limit is not None:
                # Only now: the loader maps the files of the other half as well for a moment, which
                # the kernel counts and which takes no memory.
                resource.setrlimit(resource.RLIMIT_DATA, (self._limit, self._limit))
            self.loaded, self.cpu = time.monotonic(), time.process_time()

    def item(self, key: str, **values: Any) -> None:
        self._look()
        since = time.monotonic() - self.loaded, time.process_time() - self.cpu
        self.marks.append((*since, self._peak))

    def _follow(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        self._peak = max(self._peak, anonymous_bytes() - self._baseline + self._mapped)


def mapped_bytes() -> int:
    """Bytes of checkpoint files that the process has mapped: weights in their own precision lie
    there and nowhere else."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            first, last = (int(end, 16) for end in line.split(" ", 1)[0].split("-"))
            total += last - first
    return total


def joint(job: dict[str, Any], watch: Watch) -> list[str]:
    """The whole model in one process: load, processor, `generate`."""
    import torch
    from transformers import AutoModelForImageTextToText

    from stages.encode.run import read_clip
    from stages.models.processors.prepare import load_processor
    from stages.models.processors.prepare import whole as inputs_of

    load: Any = AutoModelForImageTextToText.from_pretrained
    model = load(job["model"], dtype=getattr(torch, job["dtype"])).eval()
    processor = load_processor(Path(job["model"]))
    watch.note(attention=model.config._attn_implementation)
    frames = Shelf(open_store(job["store"]), "frames", job["frames_scope"])
    said = []
    for batch in job["batches"]:
        clips = [read_clip(frames, member) for member in batch]
        inputs = inputs_of(processor, clips, [member["prompt"] for member in batch])
        with torch.inference_mode():
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=job["max_new_tokens"])
        new = tokens[:, inputs["input_ids"].shape[1] :]
        said += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
        for member in batch:
            watch.item(member["key"])
    return said


def encode(job: dict[str, Any], watch: Watch) -> list[str]:
    from stages.encode.run import run

    run(job, watch)
    return []


def decode(job: dict[str, Any], watch: Watch) -> list[str]:
    from stages.decode import run as stage

    generate: Callable[..., Any] = stage.__dict__["generate"]

    def timed(*given: Any, **options: Any) -> Any:
        started = time.monotonic()
        tokens = generate(*given, **options)
        watch.generating += time.monotonic() - started
        return tokens

    stage.__dict__["generate"] = timed
    try:
        stage.run(job, watch)
    finally:
        stage.__dict__["generate"] = generate
    captions = Shelf(open_store(job["store"]), "captions", job["scope"])
    return [captions.meta(m["key"])["caption"] for batch in job["batches"] for m in batch]


def pure(job: dict[str, Any], watch: Watch) -> list[str]:
    """`generate` alone, on the decode stage's batches: features and inputs lie ready in memory."""
    from stages.decode.run import make_greedy, read_features
    from stages.models.halves.delivery import generate
    from stages.models.halves.features import Features
    from stages.models.halves.records import merge_blank, merge_rows
    from stages.models.loading import ModelJob
    from stages.models.processors.prepare import rebuild

    source = ModelJob.of(job)
    processor, half = source.processor(), source.hold("language").model
    make_greedy(half, processor)
    shelf = Shelf(open_store(job["store"]), "features", job["features_scope"])
    ready = []
    for batch in job["batches"]:
        rows = [read_features(shelf, member["features"]) for member in batch]
        inputs = rebuild(processor, rows, [member["prompt"] for member in batch])
        ready.append((inputs, Features(merge_rows(rows), rows[0].needs, merge_blank(rows))))
    watch.note(attention="")
    for batch, (inputs, features) in zip(job["batches"], ready, strict=True):
        generate(half, inputs, features, max_new_tokens=job["max_new_tokens"])
        for member in batch:
            watch.item(member["key"])
    return []


MODES: dict[str, Callable[[dict[str, Any], Watch], list[str]]] = {
    "joint": joint,
    "encode": encode,
    "decode": decode,
    "pure": pure,
}


def warm(job: dict[str, Any]) -> None:
    """Import all that any mode imports, and start the threads: what that takes is no mode's."""
    import torch

    import stages.decode.run
    import stages.encode.run  # noqa: F401
    from stages.models.halves.load import load_config, model_class
    from stages.models.processors.prepare import load_processor

    folder = Path(job["model"])
    model_class(load_config(folder, False), folder, False)
    load_processor(folder)
    square = torch.ones(512, 512, dtype=torch.bfloat16)
    torch.softmax(square @ square, -1)


def data_bytes() -> int:
    """What the kernel counts against RLIMIT_DATA."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


def perform(mode: str, job: dict[str, Any], limit: int | None = None) -> Outcome:
    """Run a mode in this process, whose data must stay below `limit` bytes once it has loaded."""
    with Watch(anonymous_bytes(), limit) as watch:
        texts = MODES[mode](job, watch)
        ended, cpu = time.monotonic(), time.process_time()
    return Outcome(
        whole_seconds=ended - watch.started,
        seconds=ended - watch.loaded,
        cpu_seconds=cpu - watch.cpu,
        generate_seconds=watch.generating,
        marks=tuple(watch.marks),
        texts=tuple(texts),
    )


def main(path: str) -> None:
    """Run what the file says, and write the outcome where it says."""
    spec = json.loads(Path(path).read_text())
    warm(spec["job"])
    limit = None if spec["budget"] is None else data_bytes() + spec["budget"]
    Path(spec["to"]).write_text(json.dumps(asdict(perform(spec["mode"], spec["job"], limit))))


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)  # as a stage ends

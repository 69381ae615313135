"""What the plan says that a stage takes, against what its process took; prints a table.

Each row is one real stage process over random-weight models of several architectures, in one
precision, batch and number of frames. On a CPU the measure is anonymous resident memory above what
the imports take, on a GPU what the driver says is used above what was used before.

    python -m benchmarks.plan [--device cuda:0] [--only llava] [--folder DIR]
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from artifacts.digests import digest_of
from artifacts.records.keys import item_key
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from artifacts.schema import MediaKind
from flows.core.checkpoint.gguf import GgufUse, gguf_use
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import resolve_settings, with_gguf
from flows.core.machine.launch import DirectLauncher, StageCall
from flows.core.options.commands import CaptionConfig
from flows.core.pipelines import STAGES
from flows.core.plan.costs import estimate
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Conditions, StageEstimate
from flows.core.plan.workloads import ChunkFrames, Workload, workload_of
from stages.decode.generation import DecodeItem
from stages.models.encoding import EncodeItem
from stages.models.half_job import DescribeJob
from stages.models.hub.checkpoint import Checkpoint
from stages.models.inspection import describe, run_gguf
from stages.process.events import EventReporter, StageOutcome
from stages.process.job import job_fields
from stages.tune import TuneItem
from tests.support.builders.common import MIB, cells, heads, taken
from tests.support.builders.jobs import items_of_own, made_job, own_of
from tests.support.builders.quantized import LAYOUTS, quantized
from tests.support.builders.shapes import build

SIDE = 448
"""Pixels of a side of the frames."""
BATCHES = 3
"""Of each case, so that some are read while one is computed."""
STEPS = 3
"""Of a training."""
TOKENS = 12
"""Least tokens of a caption."""
FRAMES = digest_of("frames")


HEADS = "model | stage | precision | batch | frames | planned MiB | measured MiB | error"


@dataclass(frozen=True, slots=True)
class Case:
    """One stage on one rung."""

    shape: str
    stage: Literal["encode", "decode", "tune"]
    precision: str
    batch: int
    frames: int
    """Of each chunk."""
    words: int = 8
    """Of the prompt."""
    block: int = 0
    """Chunks past which layers are streamed."""
    prefill: int = 0
    """Positions that go through an MLP at once."""
    slots: bool = False
    """Whether the batch is of slots."""
    new: int = 12
    """Most tokens of a caption."""
    rank: int = 0
    """Rank of the adapter that is trained; 0: none is."""
    recompute: bool = False
    """Whether layers are computed again for the backward pass."""
    optimizer: str = "adamw"
    packed: bool = False
    """Whether layers that another program quantized stay packed."""

    @property
    def caption(self) -> str:
        """Return what is learned, a token a letter."""
        return "c" * (self.new - 1)

    @property
    def prompt(self) -> str:
        return "describe " * self.words


CASES = (
    Case("llava", "decode", "bf16", 2, 2),
    Case("llava", "encode", "bf16", 6, 4),
    Case("llava", "decode", "fp32", 2, 2),
    Case("llava", "decode", "nf4", 4, 2),
    Case("llava", "encode", "fp32", 3, 4),
    Case("qwen2.5-vl", "encode", "bf16", 4, 8),
    Case("qwen2.5-vl", "decode", "bf16", 4, 4),
    Case("mllama", "decode", "bf16", 2, 1),
    Case("llava", "decode", "int8", 4, 2),
    Case("smolvlm", "encode", "fp32", 1, 8),
    Case("smolvlm", "decode", "fp32", 4, 8),
    Case("llava", "encode", "int8", 6, 4),
    Case("qwen2.5-vl", "encode", "fp32", 3, 8),
    Case("qwen2.5-vl", "decode", "nf4", 4, 4),
    Case("smolvlm", "encode", "bf16", 2, 8),
    Case("smolvlm", "decode", "int8", 4, 8),
    Case("mllama", "decode", "nf4", 2, 1),
    Case("llava", "encode", "bf16", 6, 4, block=12),
    Case("qwen2.5-vl", "encode", "fp32", 3, 8, block=6),
    Case("smolvlm", "encode", "fp32", 2, 8, block=4),
    Case("llava", "encode", "bf16", 6, 4, prefill=256),
    Case("smolvlm", "encode", "fp32", 1, 8, prefill=256),
    Case("llava", "decode", "bf16", 2, 2, prefill=256),
    Case("llava", "decode", "bf16", 1, 2, slots=True),
    Case("llava", "decode", "fp32", 2, 2, slots=True),
    Case("llava", "decode", "bf16", 3, 2, new=100, slots=True),
    Case("qwen2.5-vl", "decode", "bf16", 4, 4, slots=True),
    Case("smolvlm", "decode", "fp32", 4, 8, slots=True),
    Case("gemma3", "decode", "bf16", 8, 4, slots=True),
    Case("qwen3.5", "decode", "fp32", 4, 4, slots=True),
    *(
        Case(shape, "decode", kind, 8, frames, slots=True)
        for shape, frames in (("llava", 2), ("qwen2.5-vl", 4), ("smolvlm", 8))
        for kind in ("gguf-f32", "gguf-q8_0", "gguf-q4_0")
    ),
    Case("llava", "tune", "fp32", 2, 2, rank=16),
    Case("llava", "tune", "bf16", 2, 2, rank=16),
    Case("llava", "tune", "nf4", 1, 2, rank=16),
    Case("llava", "tune", "fp32", 2, 2, rank=64),
    Case("llava", "tune", "fp32", 2, 2, rank=16, recompute=True),
    Case("llava", "tune", "fp32", 1, 1, rank=16, new=400),
    Case("qwen2.5-vl", "tune", "fp32", 4, 4, rank=16),
    Case("qwen2.5-vl", "tune", "bf16", 2, 4, rank=16),
    Case("smolvlm", "tune", "fp32", 4, 8, rank=8),
    Case("smolvlm", "tune", "bf16", 2, 8, rank=16, recompute=True, optimizer="adamw8bit"),
    *(
        Case("0.5b", "decode", kind, 2, 1, slots=True, packed=packed)
        for kind in LAYOUTS
        for packed in (False, True)
    ),
    *(Case("0.5b", "tune", kind, 1, 1, rank=16, packed=True) for kind in LAYOUTS),
    Case("0.5b", "tune", "w4a16", 2, 1, rank=16, recompute=True, packed=True),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A case with both numbers."""

    case: Case
    planned: int
    measured: int
    """Bytes."""
    seconds: float

    @property
    def error(self) -> float:
        return self.planned / self.measured - 1


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown."""
    lines = [heads(HEADS)]
    for row in rows:
        case = row.case
        ways = {"streamed": case.block, "in pieces": case.prefill, "in slots": case.slots}
        ways |= {"packed": case.packed}
        stage = ", ".join([case.stage, *(way for way, taken in ways.items() if taken)])
        if case.rank:
            again = ", computed again" if case.recompute else ""
            stage += f", rank {case.rank}, {case.new} tokens{again}, {case.optimizer}"
        message = (case.shape, stage, case.precision, case.batch, case.frames)
        sizes = (f"{row.planned / MIB:,.0f}", f"{row.measured / MIB:,.0f}", f"{row.error:+.1%}")
        lines.append(cells([*message, *sizes]))
    worst = max(rows, key=lambda row: abs(row.error))
    small = sum(row.measured < 500e6 for row in rows)
    lines.append(f"\nworst {worst.error:+.1%} of {len(rows)} cases, {small} of them below 500 MB")
    return lines


class Desk:
    """A folder with models, frames and features, and the processes that use them."""

    def __init__(self, folder: Path, device: str) -> None:
        self._folder = folder
        self._device = device
        self._store = str(folder / "store")
        self._cards: dict[Path, Any] = {}
        self._runs = 0

    def measure(self, case: Case) -> Row:
        model = self._model(case)
        planned, outcome = self._plan(case, model).peak_bytes, self._run(case, model)
        measured = taken(outcome, self._device)
        return Row(case=case, planned=planned, measured=measured, seconds=outcome.seconds)

    def _model(self, case: Case) -> Model:
        folder = self._folder / "models" / case.shape
        if not (folder / "config.json").exists():
            build(folder, case.shape, TOKENS)
        kind = case.precision if case.precision.startswith("gguf") else ""
        if case.precision in LAYOUTS:
            kind, folder = case.precision, quantized(folder, case.precision)
        if folder not in self._cards:
            self._cards[folder] = describe(folder)
        profile = self._cards[folder]
        half = "vision" if case.stage == "encode" else "language"
        requests: Any = {f"{half}_precision": "native" if kind else case.precision}
        if profile.route == "joint":
            requests = {"precision": case.precision}
        config = CaptionConfig(sources=(), model=str(folder), **requests)
        settings = resolve_settings(config, profile, self._device)
        if case.precision.startswith("gguf"):
            language = with_gguf(config, settings["language"][0], in_gguf(folder, kind))
            settings = {**settings, "language": (language,)}
        return Model(
            name=case.shape,
            checkpoint=Checkpoint(name=case.shape, folder=folder),
            profile=profile,
            digests=dict.fromkeys(profile.parts, ""),
            settings=settings,
        )

    def _plan(self, case: Case, model: Model) -> StageEstimate:
        workload = self._workload(case, model)
        rung = Rung(
            stage=case.stage,
            batch=case.batch,
            block=case.block,
            offload=case.block > 0,
            prefill=case.prefill,
            in_slots=case.slots,
            packed=case.packed,
            rank=case.rank,
            recompute=case.recompute,
            optimizer=case.optimizer if case.rank else "",
            caption=case.new if case.rank else 0,
        )
        conditions = Conditions(device=self._device, new_tokens=case.new)
        return estimate(model, rung, [workload], conditions)

    def _workload(self, case: Case, model: Model) -> Workload:
        kind: MediaKind = "video" if case.frames > 1 else "image"
        stored = model.fit(kind).size(SIDE, SIDE)
        chunks = BATCHES * case.batch
        frames = ChunkFrames(case.frames, stored, (SIDE, SIDE))
        return workload_of(model, kind, chunks, frames, case.prompt)

    def _run(self, case: Case, model: Model) -> StageOutcome:
        half = model.best("vision" if case.stage == "encode" else "language")
        features = self._namespace(case.shape, case.frames, "features")
        made = self._folder / f"{features[:16]}-{case.batch}"
        if case.stage != "encode" and not made.exists():
            plain = resolve_settings(CaptionConfig(sources=()), model.profile, self._device)[
                "vision"
            ][0]
            self._call("encode", case, model, plain, features, features)
            made.touch()
        self._runs += 1
        namespace = self._namespace("run", self._runs, case.stage, id(self))
        return self._call(case.stage, case, model, half, namespace, features)

    def _call(
        self, stage: str, case: Case, model: Model, half: Any, namespace: str, features: str
    ) -> StageOutcome:
        members = [
            {
                "key": digest_of([namespace if stage == "decode" else features, key]),
                "features": digest_of([features, key]),
                "frames": key,
                "kind": "video" if case.frames > 1 else "image",
                "prompt": case.prompt,
            }
            for key in self._clips(case.frames, BATCHES * case.batch)
        ]
        arguments = {
            "store": self._store,
            "model": str(model.folder),
            "device": self._device,
            "dtype": half.dtype,
            "precision": half.precision,
            "attention": half.attention,
            "route": model.profile.route,
            "extra_modules": (
                model.profile.vision if stage == "encode" else model.profile.language
            ).extra_modules,
            "frames_per_video": model.profile.frames_per_video,
            "frames_namespace": FRAMES,
            "features_namespace": features,
            "namespace": namespace,
            "offload": stage == "encode" and case.block > 0,
            "block": case.block,
            "packed": case.packed and stage == case.stage,
            "mlp_chunk": case.prefill if stage == case.stage else 0,
            "prefill": case.prefill if stage == case.stage else 0,
            "max_new_tokens": case.new,
            "engine": "inflight" if case.slots else "transformers",
            "batches": items_of_own(
                EncodeItem if stage == "encode" else DecodeItem,
                [members[i : i + case.batch] for i in range(0, len(members), case.batch)],
            ),
        }
        if half.gguf is not None:
            tokens = self._workload(case, model).tokens + case.new
            arguments |= {"engine": "gguf", "gguf": half.gguf.path, "gguf_tokens": tokens}
            arguments["gguf_copy"] = half.gguf.copy
        if stage == "tune":
            arguments |= self._trained(case, members)
        arguments = own_of(STAGES[stage].job, arguments)
        log = self._folder / f"{stage}.log"
        call = StageCall(name=stage, job=made_job(**arguments), device=self._device, log=log)
        return DirectLauncher(lambda *_: None).start(call).wait()

    def _trained(self, case: Case, members: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Return a training job with these examples. It holds out the first two."""
        examples = [TuneItem(m["features"], m["prompt"], case.caption) for m in members]
        return {
            "examples": examples,
            "held_out": examples[:2],
            "folder": tempfile.mkdtemp(prefix="adapter-", dir=self._folder),
            "rank": case.rank,
            "steps": STEPS,
            "batch": case.batch,
            "rows": case.batch,
            "rate": 1e-4,
            "recompute": case.recompute,
            "optimizer": case.optimizer,
        }

    def _clips(self, frames: int, count: int) -> Iterator[str]:
        """Keys of so many clips of noise."""
        record_set = RecordSet(open_store(self._store), "frames", FRAMES)
        for number in range(count):
            key = item_key(FRAMES, f"clip-{frames}-{number}", 0)
            if key not in record_set:
                noise = np.random.default_rng(number).integers(
                    0, 255, (frames, SIDE, SIDE, 3), dtype=np.uint8
                )
                end = float(frames) if frames > 1 else 0.0
                meta = {
                    "index": 0,
                    "start": 0.0,
                    "end": end,
                    "times": [float(at) for at in range(frames)],
                    "height": SIDE,
                    "width": SIDE,
                }
                record_set.publish([Record(key=key, meta=meta, payload=noise.tobytes())])
            yield key

    def _namespace(self, *parts: Any) -> str:
        return digest_of(["namespace", *map(str, parts)])


def in_gguf(folder: Path, kind: str) -> GgufUse:
    """Return how a run uses the language half of a model in a GGUF file of a kind, which is written
    unless it is there."""
    from tests.support.builders.gguf_writer import write_gguf

    path = folder.with_name(f"{folder.name}-{kind}.gguf")
    if not path.exists():
        write_gguf(folder, path, kind.removeprefix("gguf-"))
    with tempfile.TemporaryFile() as events:
        report = EventReporter(os.dup(events.fileno()))
        run_gguf(job_fields(DescribeJob(model=str(folder), gguf=str(path))), report)
        events.seek(0)
        sent = map(json.loads, events.read().splitlines())
        fields = next(each["file"] for each in sent if each["event"] == "StageNotes")
    return gguf_use(fields, path=str(path), digest="", copy=f"{path}.copy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0")
    parser.add_argument("--only", default="", help="words that a case must have, comma-separated")
    parser.add_argument("--folder", type=Path, help="where models are kept for the next time")
    options = parser.parse_args()
    expected = [word for word in options.only.split(",") if word]
    cases = [c for c in CASES if all(word in map(str, asdict(c).values()) for word in expected)]
    if not cases:
        parser.error(f"no case has the values {options.only}: such as decode,True for slots")
    with tempfile.TemporaryDirectory() as made:
        desk = Desk(options.folder or Path(made), options.device)
        rows = []
        for case in cases:
            rows.append(desk.measure(case))
            print(table(rows)[-2], f"{rows[-1].seconds:.0f} s", flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

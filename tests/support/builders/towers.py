"""Every way to compute a vision half: loads it, times all of them in turn in one process, and looks
at the memory of each in a process of its own.

CLIP has the published sizes and random weights, the demo's towers are the trained ones. Pictures
and clips are of the demo's world.
"""

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from artifacts.records.keys import hash_file
from artifacts.schema import HalfName, Route
from penstock_demo import CHECKPOINT, DUAL_CHECKPOINT
from stages.export import GraphJob
from stages.export.compare import nearness
from stages.export.graphs import run as graphs_run
from stages.memory.meta_device import tensors
from stages.models.graphs.manifest import GraphManifest, read_manifest
from stages.models.halves.features import encode
from stages.models.halves.model_class import config_and_class
from stages.models.inspection import describe
from stages.models.loading import ModelJob, warm_source
from stages.process.device import device_used_bytes
from stages.process.memory import Sampler
from tests.support.builders.common import Peak, unheard

HALF: HalfName = "vision"
FIRST = "torch fp32"
LEAST_ROUNDS = 3
FRAMES, SIDE = 8, 64
"""Of a clip: frames, and pixels of a frame's edge."""
SEED = 11
DEMOS = {"demo": CHECKPOINT, "demo-clip": DUAL_CHECKPOINT}
NAMES = {
    "b32": "CLIP ViT-B/32",
    "l14": "CLIP ViT-L/14",
    "demo": "demo",
    "demo-clip": "demo's CLIP",
}
"""Shape → name for people."""


class ClipSize(NamedTuple):
    """What a CLIP is made of."""

    layers: int
    width: int
    heads: int
    side: int
    """Pixels of a picture's edge."""
    patch: int
    text_width: int
    projection: int
    """Width of a vector."""


CLIPS = {
    "b32": ClipSize(12, 768, 12, side=224, patch=32, text_width=512, projection=512),
    "l14": ClipSize(24, 1024, 16, side=224, patch=14, text_width=768, projection=768),
}


def checkpoint(folder: Path, shape: str) -> Path:
    """Return a checkpoint of a shape, which is written unless it is the demo's."""
    from tests.support.builders.clip import save_clip

    if shape in DEMOS:
        return DEMOS[shape]
    size = CLIPS[shape]
    texts = {
        "hidden_size": size.text_width,
        "intermediate_size": 4 * size.text_width,
        "num_hidden_layers": 12,
        "num_attention_heads": size.text_width // 64,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
    }
    return save_clip(
        folder / "model",
        None,
        texts,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        image_size=size.side,
        patch_size=size.patch,
        projection_dim=size.projection,
    )


class Way(NamedTuple):
    """One way to compute a vision half."""

    dtype: str
    graphs: str = ""
    """Kind of graphs, as `penstock export --to` names it; empty: torch."""
    compiled: bool = False


WAYS = {
    FIRST: Way("float32"),
    "torch bf16": Way("bfloat16"),
    "torch.compile fp32": Way("float32", compiled=True),
    "ONNX fp32": Way("float32", "onnx"),
}
LOW = {
    "cpu": ("ONNX int8", Way("float32", "onnx-int8")),
    "cuda": ("ONNX fp16", Way("float16", "onnx-fp16")),
}
"""Kind of device → the way with few bits, which is not the same on both."""


class Subject(NamedTuple):
    """The checkpoint that is looked at, and how."""

    model: str
    graphs: dict[str, str]
    """Kind of graphs → folder of the checkpoint that has them."""
    route: Route
    device: str
    batch: int
    rounds: int
    seconds: float
    """After which no round begins, once there were a few."""

    def ways(self) -> dict[str, Way]:
        return {**WAYS, **dict([LOW[self.device.partition(":")[0]]])}

    def job(self, way: Way) -> ModelJob:
        on_gpu = self.device != "cpu"
        return ModelJob(
            model=self.graphs[way.graphs] if way.graphs else self.model,
            dtype=way.dtype,
            device=self.device,
            route=self.route,
            backend="onnx" if way.graphs else "",
            graph_bytes=torch.cuda.mem_get_info()[0] // 4 if on_gpu and way.graphs else 0,
        )

    def load(self, way: Way) -> Any:
        """The half, computed that way. Raises PenstockError."""
        half = self.job(way).load(HALF)
        if way.compiled:
            for tower in self.manifest("onnx").halves[HALF].towers:
                half.get_submodule(tower.path).compile()
        return half

    def manifest(self, kind: str) -> GraphManifest:
        """What is said of the graphs of a kind."""
        found = read_manifest(Path(self.graphs[kind]))
        assert found is not None
        return found

    def file_bytes(self, way: Way, half: Any) -> int:
        """Bytes of a half's weights, in the type they are computed in, or of its graphs' files and
        of what is left to torch."""
        left: int = sum(weight.nbytes for weight in half.parameters())
        if not way.graphs:
            return left
        manifest = self.manifest(way.graphs)
        return left + sum(manifest.sizes[name] for name in manifest.files_of(HALF))


def export(model: str, kind: str, folder: str) -> Route:
    """Write the graphs of a vision half of a kind, as `penstock export` does before it judges
    them; return by what route the model is run."""
    graphs_run.warm({})
    profile = describe(Path(model))
    job = GraphJob(
        model=model,
        recipe={"kind": kind},
        folder=folder,
        kind=kind,
        weights={HALF: {name: hash_file(Path(model, name)) for name in profile.vision.shards}},
        frames_per_video=profile.frames_per_video,
        extra_modules={HALF: list(profile.vision.extra_modules)},
        route=profile.route,
    )
    graphs_run.run(asdict(job), unheard())
    return profile.route


def peak(subject: Subject, name: str) -> dict[str, int]:
    """Most memory that one way takes, from loading to the end of a batch, and bytes of its files.
    Of a GPU, its own memory."""
    way = subject.ways()[name]
    inputs = _begin(subject, 1, [way])[0]
    if subject.device == "cpu":
        seen = Peak()
        half = subject.load(way)
        encode(half, inputs)
        most = seen.bytes()
    else:
        torch.zeros(1, device=subject.device)  # the context is there whatever is computed
        before = device_used_bytes(subject.device)
        with Sampler(subject.device) as memory:
            half = subject.load(way)
            encode(half, inputs)
        most = memory.peak_device_bytes - before
    return {"peak": most, "bytes": subject.file_bytes(way, half)}


def times(subject: Subject) -> dict[str, Any]:
    """Seconds of each way in each round, a batch a round, all ways in turn; and how near the
    features of all rounds are to those of the first way. A way that cannot be had says why."""
    given = _begin(subject, subject.rounds, list(subject.ways().values()))
    clock = _clock(subject.device)
    halves, cannot = {}, {}
    for name, way in subject.ways().items():
        try:
            halves[name] = subject.load(way)
            encode(halves[name], given[0])
        except Exception as error:  # compilers fail in any way
            if not way.compiled:
                raise
            cannot[name] = (str(error).splitlines() or [type(error).__name__])[0]
            halves.pop(name, None)
    took: dict[str, list[float]] = {name: [] for name in halves}
    made: dict[str, list[torch.Tensor]] = {name: [] for name in halves}
    ends = time.monotonic() + subject.seconds
    for turn, inputs in enumerate(given):
        if turn >= LEAST_ROUNDS and time.monotonic() > ends:
            break
        # Begun at another way every round: each comes after each other one.
        for name in (names := list(halves))[turn % len(names) :] + names[: turn % len(names)]:
            before = clock()
            features = encode(halves[name], inputs)
            took[name].append(clock() - before)
            made[name].append(_rows(features))
    return {"seconds": took, "near": _near(made), "cannot": cannot}


def _begin(subject: Subject, batches: int, ways: Sequence[Way]) -> list[dict[str, Any]]:
    """Import what these ways need, and return what they are given: neither is a way's own."""
    torch.set_num_threads(1)
    warm_source(subject.job(WAYS[FIRST]))
    config_and_class(Path(subject.model), False)
    if any(way.compiled for way in ways):
        import_module("torch._inductor.compile_fx")
    if any(way.graphs for way in ways):
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import_module("onnxruntime")
    return inputs_of(subject, batches)


def inputs_of(subject: Subject, count: int) -> list[dict[str, Any]]:
    """Return so many batches of pictures, or clips, as the processor makes them; no two alike, and
    the same in every process."""
    from stages.models.processors.images import prepare_images
    from stages.models.processors.prepare import prepare
    from stages.models.processors.processor_calls import joined

    processor, batch = subject.job(WAYS[FIRST]).processor(), subject.batch
    if subject.route == "dual":
        rows = [prepare_images(processor, one) for one in _pictures(batch * count)]
    else:
        rows = [prepare(processor, one) for one in _clips(batch * count)]
    batches = [rows[at : at + batch] for at in range(0, len(rows), batch)]
    return [
        {n: joined([row.inputs[n] for row in rows]) for n in rows[0].inputs} for rows in batches
    ]


def _pictures(count: int) -> Iterator[Any]:
    """Pictures of one to three things, of many sizes."""
    import numpy as np
    from PIL import Image

    from penstock_demo.dual.pictures import write_images
    from stages.models.processors.blank_clips import Clip

    with tempfile.TemporaryDirectory() as folder:
        for truth in write_images(Path(folder), "several", count, SEED):
            pixels = np.asarray(Image.open(Path(folder, truth.file)))
            yield Clip(frames=pixels[None], times=(0.0,), seconds=0.0, kind="image")


def _clips(count: int) -> Iterator[Any]:
    """Clips of two frames a second."""
    from penstock_demo.render import render_frames
    from penstock_demo.world import sample_clip
    from stages.models.processors.blank_clips import Clip

    draw, at = random.Random(SEED), [number / FRAMES for number in range(FRAMES)]
    times = tuple(number / 2 for number in range(FRAMES))
    for _ in range(count):
        pixels = render_frames(sample_clip(draw, "trained"), at, SIDE, SIDE)
        yield Clip(frames=pixels, times=times, seconds=FRAMES / 2, kind="video")


def _clock(device: str) -> Callable[[], float]:
    """CPU time of all threads; on a GPU the time until it is done."""
    if device == "cpu":
        return time.process_time

    def done() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return done


def _rows(features: Any) -> torch.Tensor:
    """All features of a batch, (rows, width)."""
    found = tensors(*(dict(record) for record in features.values()))
    return torch.cat([part.reshape(-1, part.shape[-1]).float().cpu() for part in found])


def _near(made: Mapping[str, list[torch.Tensor]]) -> dict[str, Any]:
    expected = made[FIRST]
    counts = [(str(turn), len(rows)) for turn, rows in enumerate(expected)]
    near = {n: nearness(torch.cat(expected), torch.cat(rows), counts) for n, rows in made.items()}
    return {name: {k: v for k, v in of.items() if k != "by_chunk"} for name, of in near.items()}


def times_faster(took: Mapping[str, list[float]], name: str) -> float:
    """How many times faster than the first way: the median of rounds, each against itself."""
    return median(a / b for a, b in zip(took[FIRST], took[name], strict=True))

"""Graphs on the device, by CUDA's provider and TensorRT's, beside what torch makes there."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._common import unheard
from scripts.gpu_check.halves import Bench, numbers
from scripts.gpu_check.rows import Row, mib, row, skipped
from scripts.gpu_check.setting import DEMO, Setting

CLOSE = 5e-2
"""How far features in 16 bit may be from those of torch, in parts of the largest number."""
GRAPH_BYTES = 1 << 30
REPEATS = 20


class GraphBench(Bench):
    """The demo model with graphs in 16 bit, which a processor makes."""

    def __init__(self, device: str, folder: Path) -> None:
        from artifacts.keys import hash_file
        from stages.export.graphs.run import run
        from stages.export.jobs import GraphJob
        from stages.process.job import job_fields

        super().__init__(DEMO, device, "float16")
        weights = {p.name: hash_file(p) for p in Path(self.model).glob("*.safetensors")}
        job = GraphJob(
            model=self.model,
            recipe={},
            folder=str(folder / "model"),
            kind="onnx-fp16",
            weights={"vision": weights},
            pieces={},
        )
        run(job_fields(job), unheard())
        self.engines = folder / "engines"
        self.with_graphs = job.folder

    def by_graphs(self, backend: str) -> Any:
        """The vision half whose towers graphs compute."""
        from stages.models.loading import ModelJob

        told: dict[str, Any] = {"device": self.device, "graph_bytes": GRAPH_BYTES}
        job = ModelJob(model=self.with_graphs, backend=backend, engines=str(self.engines), **told)
        return job.load("vision")

    def seconds(self, half: Any) -> float:
        """The shortest of some passes."""
        import torch

        taken = []
        for _ in range(REPEATS):
            torch.cuda.synchronize(self.device)
            began = time.perf_counter()
            self.encode(half)
            torch.cuda.synchronize(self.device)
            taken.append(time.perf_counter() - began)
        return min(taken)


def by_cuda(setting: Setting) -> Iterator[Row]:
    """Features by CUDA's provider, their speed, and what it takes of the card."""
    with tempfile.TemporaryDirectory() as folder:
        bench = GraphBench(setting.device, Path(folder))
        yield from _beside_torch(bench, "onnx")


def by_tensorrt(setting: Setting) -> Iterator[Row]:
    """The same by TensorRT's, and how much sooner it starts when it finds what it made."""
    from flows.checkpoint.graphs import missing_libraries, tensorrt_version

    if missing := missing_libraries():
        yield skipped("graphs by tensorrt", f"{' and '.join(missing)} cannot be opened")
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = GraphBench(setting.device, Path(folder))
        taken = []
        for _ in range(2):
            began = time.perf_counter()
            bench.encode(bench.by_graphs("tensorrt"))
            taken.append(time.perf_counter() - began)
        found = f"{taken[0]:.1f} s, then {taken[1]:.1f} s, version {tensorrt_version()}"
        sooner = taken[1] < taken[0] / 2
        yield row("start of tensorrt", "half as long the second time", found, sooner)
        yield from _beside_torch(bench, "tensorrt")


def _beside_torch(bench: GraphBench, backend: str) -> Iterator[Row]:
    import torch

    from stages.process.device import device_used_bytes

    wanted, plain = numbers(bench.features), bench.half("vision")
    before = device_used_bytes(bench.device)
    half = bench.by_graphs(backend)
    apart = float((numbers(bench.encode(half)) - wanted).abs().max() / wanted.abs().max())
    words = f"less than {CLOSE:g} apart"
    yield row(f"features by {backend} beside torch", words, f"{apart:.1e} apart", apart < CLOSE)
    used = device_used_bytes(bench.device) - before
    limit = f"at most {mib(GRAPH_BYTES)}"
    yield row(f"taken by {backend}", limit, mib(used), 0 <= used <= GRAPH_BYTES)
    ratio = bench.seconds(plain) / bench.seconds(half)
    yield row(f"speed of {backend} beside torch in fp16", "told", f"x {ratio:.2f}", ratio > 0)
    torch.cuda.empty_cache()

"""The stage that measures this machine: compute, memory, disk, device, video decoding, process
start."""

import functools
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stages.memory.job import MeasureJob
from stages.memory.machine_benchmarks import (
    DTYPES,
    call_seconds,
    copies,
    disk,
    jpeg_pixels,
    passes,
    preparing,
    quantizing,
    video_pixels,
)
from stages.process.device_limit import context_bytes
from stages.process.job import parse_job
from stages.process.report import EventReporter

QUANTIZED = ("nf4", "int8")
SINGLE_FIGURES = ("video_pixels", "picture_pixels", "library_seconds")
"""Figures that do not depend on the precision."""
LIBRARIES = (
    "transformers.modeling_utils",
    "transformers.generation",
    "transformers.processing_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.image_processing_utils",
    "transformers.video_processing_utils",
    "torchvision.transforms.v2.functional",
)
"""Modules that a stage with half a model imports in addition to torch, whatever the model."""


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Run the benchmarks and send a note `machine`."""
    job = parse_job(MeasureJob, job_fields)
    found: dict[str, Any] = {"python_seconds": _since_start()}
    if job.device != "cpu":
        found |= _context(job.device, job.companion)
    measured = Measured(time.perf_counter() + job.seconds)
    with torch.inference_mode():
        _add_required_figures(found, job.device, Path(job.folder))
        for name, benchmark in _benchmarks(job.device, job.companion).items():
            measured.add(name, benchmark)
    for kind in ("passes", "quantize"):
        found[kind] = measured.of(kind)
    found |= {name: measured.found[name] for name in SINGLE_FIGURES if name in measured.found}
    report.note(machine={**found, "missing": measured.missing})


def _add_required_figures(found: dict[str, Any], device: str, folder: Path) -> None:
    """Add the figures that every estimate needs."""
    found["call_seconds"] = call_seconds(device)
    found["prepare"] = preparing()
    found |= disk(folder)
    if device != "cpu":
        found |= copies(device)


def _benchmarks(device: str, companion: str) -> dict[str, Callable[[], Any]]:
    """Return the other benchmarks, the most used first."""
    benchmarks: dict[str, Callable[[], Any]] = {}
    for precision in ("fp32", "bf16"):
        benchmarks[f"passes {precision}"] = functools.partial(passes, precision, device, companion)
    benchmarks |= {"video_pixels": video_pixels, "picture_pixels": jpeg_pixels}
    benchmarks["library_seconds"] = _imports
    for precision in (*QUANTIZED, "fp16"):
        if precision in QUANTIZED:
            benchmarks[f"quantize {precision}"] = functools.partial(quantizing, precision, device)
        benchmarks[f"passes {precision}"] = functools.partial(passes, precision, device, companion)
    return benchmarks


class Measured:
    """Figures by name, and the reasons for missing ones. A failed or skipped benchmark does not
    stop the others."""

    def __init__(self, end: float) -> None:
        self._end = end
        self.found: dict[str, Any] = {}
        self.missing: dict[str, str] = {}

    def add(self, name: str, benchmark: Callable[[], Any]) -> None:
        if time.perf_counter() > self._end:
            self.missing[name] = "there was no time left"
            return
        try:
            self.found[name] = benchmark()
        except Exception as error:  # a library without a kernel may raise any error
            first = str(error).strip().splitlines()
            self.missing[name] = f"{type(error).__name__}: {first[0] if first else ''}"[:200]

    def of(self, kind: str) -> dict[str, Any]:
        """Return the figures named `kind precision`, by precision."""
        names = [name for name in self.found if name.startswith(f"{kind} ")]
        return {name.partition(" ")[2]: self.found[name] for name in names}


def _since_start() -> float:
    """Return the age of this process in seconds: the time to start Python and import torch."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _context(device: str, companion: str) -> dict[str, float]:
    """Return the seconds and bytes that a GPU context takes."""
    started = time.perf_counter()
    taken = context_bytes(device, str(DTYPES[companion]).removeprefix("torch."))
    return {"context_seconds": time.perf_counter() - started, "context_bytes": taken}


def _imports() -> float:
    started = time.perf_counter()
    for name in LIBRARIES:
        importlib.import_module(name)
    return time.perf_counter() - started

"""CUDA graphs of a card that is not there, with the checks and the errors of torch 2.15. What is
recorded is replayed on the CPU: `tests/support/cpu_graph.py`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.support.cpu_graph import MAKE, CpuGraph
from tests.support.fake_gpu.state import GraphFaults

MODES = ("global", "thread_local", "relaxed")
PREVIOUS = "CUDA error: operation failed due to a previous error during capture"
DRIVER = "CUDA error: unspecified launch failure"
SHORT = "CUDA out of memory. Tried to allocate 58.00 MiB. GPU 0 has a total capacity of 8.00 GiB"


@dataclass(kw_only=True, slots=True)
class Happened:
    """What this process has recorded."""

    recordings: int = 0
    replays: int = 0
    modes: list[str] = field(default_factory=list)
    """The mode of each recording."""
    pools: list[Any] = field(default_factory=list)
    """The pool of memory of each, as it was asked for."""
    capturing: bool = False
    faults: Callable[[], GraphFaults] = GraphFaults
    log: Callable[..., object] = lambda *_: None


happened = Happened()


class CUDAGraph:
    """In the place of `torch.cuda.CUDAGraph`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.recorded = CpuGraph()
        self.differs = False
        self._pool: tuple[int, int] = (0, id(self))

    def pool(self) -> tuple[int, int]:
        return self._pool

    def reset(self) -> None:
        self.recorded = CpuGraph()

    def replay(self) -> None:
        happened.replays += 1
        happened.log("replay")
        if happened.replays == happened.faults().replay:
            raise torch.AcceleratorError(DRIVER)
        self.recorded.replay()
        if self.differs:
            self._differ()

    def _differ(self) -> None:
        """Change what the last operator made."""
        *_, last = (call for call in self.recorded.calls if call[0] == MAKE)
        with torch.inference_mode():
            last[-1].view(-1)[:1] += 1


class graph(AbstractContextManager[None]):
    """In the place of `torch.cuda.graph`."""

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: Any = None,
        stream: Any = None,
        capture_error_mode: str = "global",
    ) -> None:
        if capture_error_mode not in MODES:
            raise RuntimeError(f"Unknown capture error mode. Got {capture_error_mode}")
        happened.recordings += 1
        happened.modes.append(capture_error_mode)
        happened.pools.append(pool)
        happened.log("record", capture_error_mode)
        number, faults = happened.recordings, happened.faults()
        fault: Exception | None = None
        if number in faults.failing:
            fault = torch.AcceleratorError(DRIVER)
        elif number in faults.short:
            fault = torch.OutOfMemoryError(SHORT)
        cuda_graph.differs = number in faults.other
        if pool is not None:
            cuda_graph._pool = pool
        self._block = cuda_graph.recorded.recording(fault)

    def __enter__(self) -> None:
        happened.capturing = True
        self._block.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        happened.capturing = False
        self._block.__exit__(kind, error, trace)
        if error is not None:  # as the capture that is then ended
            raise torch.AcceleratorError(PREVIOUS)


REPLACED: dict[str, Any] = {
    "CUDAGraph": CUDAGraph,
    "graph": graph,
    "graph_pool_handle": lambda: (0, 0),
    "is_current_stream_capturing": lambda: happened.capturing,
}
"""Name in torch.cuda → what takes its place."""

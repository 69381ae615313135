"""What all recordings of CUDA graphs share: decode steps and passes of vision halves.

A recording holds the kernels that a computation starts, with the addresses of their tensors, and is
replayed without Python. It is used only if a replay gave the same bits as the computation itself.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

from stages.process.exit_diagnosis import causes, first_line

SWITCH: Final = "PENSTOCK_RECORD_STEPS"
"""Environment variable for checks: with 0 nothing is recorded."""
REASON_CHARACTERS: Final = 200
"""Maximum number of characters of a reason."""


def is_switched_off() -> bool:
    return os.environ.get(SWITCH) == "0"


@contextmanager
def recording(memory: Any) -> Iterator[Any]:
    """Record what the block computes, and yield the graph. `memory` is the pool of another graph,
    which the new one shares; None: it gets its own. Raises whatever a driver or a model raises."""
    graph: Any = torch.cuda.CUDAGraph()
    # Other threads read features, copy and pin memory meanwhile. In any other mode that would end
    # the recording, and fail in those threads.
    with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
        yield graph


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have the same bits; numbers that are not finite are compared,
    too."""
    alike = one.shape == other.shape and one.dtype == other.dtype
    first, second = (value.contiguous().view(-1).view(torch.uint8) for value in (one, other))
    return alike and torch.equal(first, second)


def reason_of(error: BaseException) -> str:
    """Return the innermost cause: what is raised last says only that a recording ended."""
    *_, cause = causes(error)
    return f"{type(cause).__name__}: {first_line(cause)}"[:REASON_CHARACTERS]

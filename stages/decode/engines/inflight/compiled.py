"""Compiles the decode step: kernels are fused and launched without Python in between.

A compiled step rounds differently from an uncompiled one, so it counts as an engine of its own. It
is compiled once per pool shape. If compiling fails, the step does not fall back to uncompiled code:
parts of one caption would then be rounded differently.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations import sdpa_attention

from artifacts.errors import UsageError
from stages.process.exit_diagnosis import causes, first_line, oom_message

SHAPES = 64
"""Maximum number of compiled shapes per process. Columns double, so there are few shapes."""


class CompiledStep:
    """The most recent compiled decode step of the half."""

    def __init__(self, device: str) -> None:
        # On a GPU the compiled step is recorded as a CUDA graph and replayed.
        self._mode = "reduce-overhead" if device.startswith("cuda") else "default"
        self._model: Any = None
        self._step: Callable[..., Any] | None = None

    def of(self, model: Any) -> Callable[..., Any]:
        """Return the compiled step of this model. A half that was reloaded is compiled again."""
        if self._step is None or self._model is not model:
            with _translated_errors():
                _configure_compiler()
                self._step = torch.compile(model, fullgraph=True, dynamic=False, mode=self._mode)
            self._model = model
        return self._run_step

    def _run_step(self, **kwargs: Any) -> Any:
        assert self._step is not None
        with _translated_errors(), _shared_heads_unexpanded():
            return self._step(**kwargs)


def graph_note(device: str) -> dict[str, str]:
    """Return whether CUDA graphs of the steps were recorded; nothing on a CPU. Torch skips a
    recording without an error."""
    if not device.startswith("cuda"):
        return {}
    from torch._dynamo.utils import counters

    skipped = counters["inductor"]["cudagraph_skips"]
    return {"cuda_graphs": f"skipped {skipped} times" if skipped else "recorded"}


def mark_static(cache: Any) -> None:
    """Tell the compiler that the cache tensors keep their addresses. Otherwise no step that writes
    to them is recorded as a CUDA graph."""
    from torch._dynamo import mark_static_address

    for layer in cache.layers:
        for value in vars(layer).values():
            if torch.is_tensor(value):
                mark_static_address(value)


def _configure_compiler() -> None:
    """Allow a compilation per shape, and compile in this process, within its memory and CPU
    limits."""
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.accumulated_recompile_limit = SHAPES
    torch._inductor.config.compile_threads = 1


@contextmanager
def _shared_heads_unexpanded() -> Iterator[None]:
    """Let attention read keys that several heads share without copies, as uncompiled code does. The
    compiler would copy all columns for each head."""
    library: Any = sdpa_attention
    before = library.is_torchdynamo_compiling
    library.is_torchdynamo_compiling = lambda: False
    try:
        yield
    finally:
        library.is_torchdynamo_compiling = before


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raise a compiler's errors as MemoryError or UsageError."""
    try:
        yield
    except Exception as error:
        if (message := oom_message(error)) is not None:
            raise MemoryError(message) from error
        if (found := _failure(error)) is None:
            raise
        raise found from error


def _failure(error: Exception) -> UsageError | None:
    """Return the error of a compiler that fails or is missing; None for any other error."""
    from torch._dynamo.exc import TorchDynamoException

    advice = "use --engine inflight; nothing finished is lost"
    for cause in causes(error):
        if isinstance(cause, OSError):
            return UsageError(
                f"cannot store the compiled step: {first_line(cause)}",
                hint=f"Set TORCHINDUCTOR_CACHE_DIR to another folder, or {advice}",
            )
    if not isinstance(error, TorchDynamoException):
        return None
    message = first_line(error)[:200]
    return UsageError(
        f"cannot compile the decode step of this model: {message}",
        hint=f"{advice[0].upper()}{advice[1:]}",
    )

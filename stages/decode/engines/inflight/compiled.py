"""Compiles the decode step: kernels are fused and launched without Python in between.

A compiled step rounds differently from an uncompiled one, so it counts as an engine of its own. It
is compiled once per pool shape. If compiling fails, the step does not fall back to uncompiled code:
rows of one caption would then be rounded in two ways.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations import sdpa_attention

from artifacts.errors import UsageError
from stages.process.exit_diagnosis import causes, first_line, oom_message

SHAPES = 64
"""Shapes that one process has compiled at most: columns double, so that there are few."""


class CompiledStep:
    """The most recent compiled decode step of the half."""

    def __init__(self, device: str) -> None:
        # On a GPU what was compiled is recorded too, and played as a whole.
        self._mode = "reduce-overhead" if device.startswith("cuda") else "default"
        self._model: Any = None
        self._step: Callable[..., Any] | None = None

    def of(self, model: Any) -> Callable[..., Any]:
        """Return what computes a step in place of this model. A half that was loaded again is
        compiled again."""
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


def mark_static(cache: Any) -> None:
    """Tell a compiler that what these layers keep lies where it lies: else no step that writes to
    it is recorded."""
    from torch._dynamo import mark_static_address

    for layer in cache.layers:
        for value in vars(layer).values():
            if torch.is_tensor(value):
                mark_static_address(value)


def _configure_compiler() -> None:
    """Have all shapes compiled, and in this process: its memory and its cores are what it was
    given."""
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.accumulated_recompile_limit = SHAPES
    torch._inductor.config.compile_threads = 1


@contextmanager
def _shared_heads_unexpanded() -> Iterator[None]:
    """Have attention go through keys that several heads share where they lie, as it does where
    nothing is compiled: a compiler would be given a copy for each head, of all columns."""
    library: Any = sdpa_attention
    before = library.is_torchdynamo_compiling
    library.is_torchdynamo_compiling = _never
    try:
        yield
    finally:
        library.is_torchdynamo_compiling = before


def _never() -> bool:
    return False


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raise what goes wrong with a compiler as what it is: MemoryError, or UsageError."""
    try:
        yield
    except Exception as error:
        if (message := oom_message(error)) is not None:
            raise MemoryError(message) from error
        if (found := _failure(error)) is None:
            raise
        raise found from error


def _failure(error: Exception) -> UsageError | None:
    """Return in words what a compiler says that cannot, or is not there; None for what another
    says."""
    from torch._dynamo.exc import TorchDynamoException

    advice = "use --engine inflight; nothing finished is lost"
    for cause in causes(error):
        if isinstance(cause, OSError):
            return UsageError(
                f"a compiled step cannot be kept: {first_line(cause)}",
                hint=f"Name another folder in TORCHINDUCTOR_CACHE_DIR, or {advice}",
            )
    if not isinstance(error, TorchDynamoException):
        return None
    message = first_line(error)[:200]
    return UsageError(
        f"a step of this model cannot be compiled: {message}",
        hint=f"{advice[0].upper()}{advice[1:]}",
    )

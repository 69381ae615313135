"""Times decode steps in slots, on the host and on the card, and counts calls and kernels."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from scripts.gpu_check.card import stand_in
from scripts.gpu_check.halves import timed

if TYPE_CHECKING:
    from stages.decode.engines.inflight.compiled import CompiledStep
    from stages.decode.engines.inflight.prefill import PrefilledSequence

STEPS = 16
"""Steps whose logits are compared."""
PROFILED = 3
"""Calls that are profiled together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a call costs."""

    wall_ms: float
    calls: float
    """Operators that the host starts."""
    card_ms: float
    """Milliseconds in which the card computes."""
    kernels: float
    """0: the profiler sees no card."""

    @property
    def words(self) -> str:
        on_card = f"{self.card_ms:.2f} ms on the card in {self.kernels:,.0f} kernels"
        on_card = on_card if self.kernels else "the profiler sees no kernels"
        return f"{self.wall_ms:.2f} ms, {self.calls:,.0f} calls; {on_card}"


def work_of(call: Callable[[], object]) -> Work:
    """Return what one call costs. Its time is taken without the profiler."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    def several(times: int) -> None:
        for _ in range(times):
            call()
        torch.cuda.synchronize()

    seconds = timed(partial(several, 1))
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (not stand_in())
    with profile(activities=kinds) as profiled:
        several(PROFILED)
    events = [each for each in profiled.key_averages() if not each.is_user_annotation]
    on_card = [each for each in events if each.device_type.name == "CUDA"]
    return Work(
        wall_ms=1000 * seconds,
        calls=sum(each.count for each in events if each.key.startswith("aten::")) / PROFILED,
        card_ms=sum(each.self_device_time_total for each in on_card) / PROFILED / 1000,
        kernels=sum(each.count for each in on_card) / PROFILED,
    )


def stepped(
    read: "PrefilledSequence", compiled: "CompiledStep | None", rows: int
) -> tuple[Any, Work]:
    """Return the logits of the first row in some steps beside other rows, and what a step costs."""
    import torch

    from stages.decode.engines.inflight.pool import SlotPool
    from stages.decode.engines.inflight.pool_shape import PoolShape, columns_for

    columns = columns_for(read.tokens + read.max_new_tokens)
    read = replace(read, step=compiled.of(read.model) if compiled else None)
    pool = SlotPool(read, PoolShape(rows=rows, slots=rows, columns=columns))
    for slot in range(rows):
        pool.put(slot, read, read.logits.argmax(-1, keepdim=True))

    def step() -> Any:
        logits = pool.step()
        pool.set_tokens(logits.argmax(-1))
        return logits

    said = [step()[0].cpu() for _ in range(STEPS)]
    return torch.stack(said), work_of(step)

"""Times a decode step of a model: as it is, and recorded as a CUDA graph."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from scripts.gpu_check.driver import stand_in
from scripts.gpu_check.halves import timed
from scripts.gpu_check.rows import Row, Setting, message_of, one_line, skipped

if TYPE_CHECKING:
    from stages.decode.engines.inflight.prefill import PrefilledSequence
    from stages.decode.engines.inflight.recorded import StepRecorder


STEP_ROWS = (8, 64)
"""Rows of a step of a model."""
STEPS_COMPARED = 16
"""Steps whose logits are compared."""
PROFILED = 3
"""Calls that are profiled together."""
NO_GRAPH = "torch records no CUDA graph of a stand-in"


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


Forced = Sequence[Any]
"""The token of each step, the same in all rows."""


def stepped(
    read: "PrefilledSequence", recorder: "StepRecorder | None", rows: int, tokens: Forced = ()
) -> tuple[Any, list[Any], Work]:
    """Return the logits of the first row in some steps beside other rows, the tokens that it was
    given, and what a step costs. Without `tokens` it is given those that it says, and after a
    difference in rounding all that follows would differ."""
    import torch

    from stages.decode.engines.inflight.pool_shape import PoolShape, columns_for
    from stages.decode.engines.inflight.recorded import make_pool

    columns = columns_for(read.tokens + read.max_new_tokens)
    pool = make_pool(read, PoolShape(rows=rows, slots=rows, columns=columns), recorder)
    for slot in range(rows):
        pool.put(slot, read, read.logits.argmax(-1, keepdim=True))
    given, text = list(tokens), []
    for at in range(STEPS_COMPARED):
        text.append(pool.step()[0].cpu())
        if at == len(given):
            given.append(text[-1].argmax())
        pool.set_tokens(given[at].to(read.logits.device).expand(rows))

    def step() -> Any:
        logits = pool.step()
        pool.set_tokens(logits.argmax(-1))
        return logits

    return torch.stack(text), given, work_of(step)


def steps_of(setting: Setting, read: "PrefilledSequence", precision: str) -> Iterator[Row]:
    """Steps of few and many rows as they are; in bf16 also recorded as a CUDA graph."""
    plain: dict[int, Work] = {}
    logits: dict[int, Any] = {}
    tokens: list[Any] = []
    for rows in STEP_ROWS:
        logits[rows], tokens, plain[rows] = stepped(read, None, rows, tokens)
        rate = 1000 * rows / plain[rows].wall_ms
        found = f"{plain[rows].words}; {rate:,.0f} tokens/s"
        figures = {**asdict(plain[rows]), "tokens_per_second": rate}
        yield message_of(f"a step of {rows} rows, {precision}", found, **figures)
    apart = float((logits[STEP_ROWS[0]] - logits[STEP_ROWS[1]]).abs().max())
    name = f"logits of {STEP_ROWS[0]} and {STEP_ROWS[1]} rows, {precision}"
    yield message_of(name, f"{apart:.1e} apart", apart=apart)
    for rows in STEP_ROWS if precision == "bf16" else ():
        yield _recorded_step(read, rows, plain[rows], logits[rows], tokens)


def _recorded_step(
    read: "PrefilledSequence", rows: int, plain: Work, expected: Any, tokens: Forced
) -> Row:
    """Return what a step costs that the product records, beside the plain one."""
    from stages.decode.engines.inflight.recorded import StepRecorder

    name, recorder = f"a step of {rows} rows, bf16, recorded", StepRecorder()
    if stand_in():
        return skipped(name, NO_GRAPH, "reported")
    try:
        logits, _, work = stepped(read, recorder, rows, tokens)
    except Exception as error:  # of a model that waits for the card
        return skipped(name, f"{type(error).__name__}: {one_line(str(error))}", "reported")
    if recorder.reason:
        return skipped(name, recorder.reason, "reported")
    apart = float((logits - expected).abs().max())
    found = f"{work.words}; x {plain.wall_ms / work.wall_ms:.2f}; logits {apart:.1e} apart"
    return message_of(name, found, **asdict(work), apart=apart)

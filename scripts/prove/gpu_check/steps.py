"""Times a decode step of a model: as it is, and recorded as a CUDA graph. Compares the logits of
recorded steps with those of plain ones."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from scripts.prove.gpu_check.driver import stand_in
from scripts.prove.gpu_check.halves import timed
from scripts.prove.gpu_check.rows import Row, Setting, message_of, mib, row
from stages.process.device import device_used_bytes

if TYPE_CHECKING:
    from stages.decode.engines.inflight.pool import Pool
    from stages.decode.engines.inflight.prefill import PrefilledSequence
    from stages.decode.engines.inflight.recorded import StepRecorder


STEP_ROWS = (8, 64)
"""Rows of a step of a model."""
STEPS_COMPARED = 16
"""Steps whose logits are compared."""
PROFILED = 3
"""Calls that are profiled together."""
SAME_BITS = "the same bits"


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


def filled_pool(
    read: "PrefilledSequence", rows: int, recorder: "StepRecorder | None" = None
) -> "Pool":
    """Return a pool with a sequence in each of its slots."""
    from stages.decode.engines.inflight.pool_shape import PoolShape, columns_for
    from stages.decode.engines.inflight.recorded import make_pool

    columns = columns_for(read.tokens + read.max_new_tokens)
    pool = make_pool(read, PoolShape(rows=rows, slots=rows, columns=columns), recorder)
    for slot in range(rows):
        pool.put(slot, read, read.logits.argmax(-1, keepdim=True))
    return pool


def stepped(
    read: "PrefilledSequence", pool: "Pool", tokens: Forced = ()
) -> tuple[Any, list[Any], Work]:
    """Return the logits of the first and the last row in some steps of a filled pool, the tokens
    that it was given, and what a step costs. Without `tokens` it is given those that it says, and
    after a difference in rounding all that follows would differ."""
    import torch

    given, said, rows = list(tokens), [], pool.shape.rows
    for at in range(STEPS_COMPARED):
        logits = pool.step()
        said.append(torch.stack([logits[0], logits[-1]]).cpu())
        if at == len(given):
            given.append(said[-1][0].argmax())
        pool.set_tokens(given[at].to(read.logits.device).expand(rows))

    def step() -> Any:
        logits = pool.step()
        pool.set_tokens(logits.argmax(-1))
        return logits

    return torch.stack(said), given, work_of(step)


def steps_of(read: "PrefilledSequence", precision: str) -> Iterator[Row]:
    """Steps of few and many rows as they are."""
    plain: dict[int, Work] = {}
    logits: dict[int, Any] = {}
    tokens: list[Any] = []
    for rows in STEP_ROWS:
        logits[rows], tokens, plain[rows] = stepped(read, filled_pool(read, rows), tokens)
        rate = 1000 * rows / plain[rows].wall_ms
        found = f"{plain[rows].words}; {rate:,.0f} tokens/s"
        figures = {**asdict(plain[rows]), "tokens_per_second": rate}
        yield message_of(f"a step of {rows} rows, {precision}", found, **figures)
    apart = float((logits[STEP_ROWS[0]][:, 0] - logits[STEP_ROWS[1]][:, 0]).abs().max())
    name = f"logits of {STEP_ROWS[0]} and {STEP_ROWS[1]} rows, {precision}"
    yield message_of(name, f"{apart:.1e} apart", apart=apart)


def recorded_steps(
    setting: Setting,
    read: "PrefilledSequence",
    precision: str,
    step_rows: Sequence[int] = STEP_ROWS,
) -> Iterator[Row]:
    """Steps that the product records and replays, beside plain ones of the same tokens."""
    from stages.decode.engines.inflight.recorded import StepRecorder
    from stages.memory.oom_retry import release_memory

    for rows in step_rows:
        expected, tokens, plain = stepped(read, filled_pool(read, rows))
        recorder = StepRecorder()
        pool = filled_pool(read, rows, recorder)
        before = _held(setting)
        logits, _, work = stepped(read, pool, tokens)
        held = {name: size - before[name] for name, size in _held(setting).items()}
        del pool
        release_memory()
        yield _recorded_step(
            f"{rows} rows, {precision}", recorder, expected, logits, (plain, work), held
        )


def _held(setting: Setting) -> dict[str, int]:
    """Return the bytes that torch has reserved, and those that are in use on the card, without
    memory that torch only keeps for later."""
    import torch

    from stages.memory.oom_retry import release_memory

    release_memory()
    used = device_used_bytes(setting.device)
    return {"reserved_bytes": torch.cuda.memory_reserved(), "device_bytes": used}


def _recorded_step(
    what: str,
    recorder: "StepRecorder",
    expected: Any,
    logits: Any,
    works: tuple[Work, Work],
    held: dict[str, int],
) -> Row:
    """Return whether all compared steps had the same bits, and what recording cost and saved."""
    import torch

    name, (plain, work) = f"a step of {what}, recorded", works
    apart = float((logits - expected).abs().max())
    # As integers, because numbers that are not finite differ from themselves.
    same = torch.equal(logits.view(torch.int32), expected.view(torch.int32))
    figures = {
        **asdict(work),
        "plain_ms": plain.wall_ms,
        "apart": apart,
        "recording_seconds": recorder.seconds,
        **recorder.stats().get("recorded", {}),
        **held,
    }
    if recorder.reason or not recorder.replayed:
        found = f"not recorded: {recorder.reason or 'no step was replayed'}"
        return row(name, SAME_BITS, found, False, **figures)
    found = f"{SAME_BITS if same else f'{apart:.1e} apart'}; {work.words}; "
    found += f"x {plain.wall_ms / work.wall_ms:.2f}; recorded in {recorder.seconds:.2f} s, "
    found += f"{mib(held['reserved_bytes'])} for its tensors, {mib(held['device_bytes'])} in all"
    return row(name, SAME_BITS, found, same, **figures)

"""Tokens of many rows, selected in one call: those that transformers' own processors select of each
row alone, and nothing waits for the device."""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from artifacts.errors import UsageError
from penstock_demo import CHECKPOINT
from stages.decode.constraint import AvoidedLogitsProcessor, HostMaskProcessor, Masks, avoided
from stages.decode.engines.inflight import scheduler
from stages.decode.engines.inflight.pool_shape import selection_bytes
from stages.decode.engines.inflight.scheduler import RowRules, TokenSelection
from stages.decode.engines.slot_load import score_bytes
from stages.decode.generate_kwargs import PresencePenalty, SeededSampler
from stages.models.cache_memory import RowMemory
from stages.models.processors.loading import load_processor
from tests.support.clips import Lowered
from tests.support.host_reads import DeviceWaits, device_waits

BAD_WORDS = [[5], [7, 8], [9, 10, 11], [12, 8], [1, 2, 3, 4]]
STEPS, REPLACED = 16, 6


class Drawn(LogitsProcessor):
    """A token of torch.multinomial."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = torch.multinomial(scores.softmax(-1), 1, generator=self.generator)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def refusing() -> LogitsProcessor:
    tokenizer = load_processor(CHECKPOINT, trusted=False).tokenizer
    return AvoidedLogitsProcessor(avoided(tokenizer, ("a", "the red", "blue ball is")), "")


Made = Sequence[LogitsProcessor]
BOTH: Mapping[str, Callable[[], Made]] = {
    "greedy": list,
    "repetition": lambda: [RepetitionPenaltyLogitsProcessor(1.1)],
    "other repetition": lambda: [RepetitionPenaltyLogitsProcessor(1.7)],
    "no-repeat-3": lambda: [NoRepeatNGramLogitsProcessor(3)],
    "no-repeat-1": lambda: [NoRepeatNGramLogitsProcessor(1)],
    "bad words": lambda: [NoBadWordsLogitsProcessor(BAD_WORDS)],
    "avoided": lambda: [refusing()],
    "too short": lambda: [MinNewTokensLengthLogitsProcessor(3, 9, [1, 2])],
    "top-k": lambda: [TemperatureLogitsWarper(0.8), TopKLogitsWarper(50)],
    "top-p": lambda: [TemperatureLogitsWarper(0.8), TopPLogitsWarper(0.9)],
    "min-p": lambda: [TemperatureLogitsWarper(1.3), MinPLogitsWarper(0.05)],
    "all": lambda: [
        RepetitionPenaltyLogitsProcessor(1.1), NoRepeatNGramLogitsProcessor(3),
        NoBadWordsLogitsProcessor(BAD_WORDS), refusing(),
    ],
}  # fmt: skip
"""Name → processors that both sides have; an odd seed adds a presence penalty, and sampling."""


def rules_of(kind: str, seed: int) -> RowRules:
    more = [PresencePenalty(0.7), SeededSampler([seed])] if seed % 2 else []
    return RowRules([*BOTH[kind](), *more])


class Alone:
    """A row by itself."""

    def __init__(self, kind: str, seed: int, prompt: torch.Tensor) -> None:
        more = [Lowered(0.7, prompt.shape[1]), Drawn(seed)] if seed % 2 else []
        self._processors = LogitsProcessorList([*BOTH[kind](), *more])
        self.ids, self.new = prompt, list[int]()

    def next(self, logits: torch.Tensor) -> int:
        ids: Any = self.ids
        token = int(self._processors(ids, logits.clone()).argmax())
        self.ids = torch.cat([self.ids, torch.tensor([[token]])], 1)
        self.new.append(token)
        return token


def differing(kinds: Sequence[str], rows: int, vocabulary: int, *, whole: bool) -> list[str]:
    """Steps and rows whose token is another than that of the row alone. The last slots stay empty,
    and a slot is filled again, by a longer prompt."""
    torch.manual_seed(rows)
    rng, together = random.Random(rows), TokenSelection(rows, whole=whole)
    alone, found = dict[int, Alone](), list[str]()

    def logits_of(count: int) -> torch.Tensor:
        logits = torch.randn(count, vocabulary) * 3
        logits[:, :30] += 4  # so that tokens repeat, and words are completed
        return logits

    def begin(slot: int, kind: str, seed: int, length: int) -> None:
        prompt, logits = torch.randint(0, vocabulary + 9, (1, length)), logits_of(1)
        alone[slot], rules = Alone(kind, seed, prompt), rules_of(kind, seed)
        token = together.first(rules, prompt, logits.clone())
        if int(token) != alone[slot].next(logits):
            found.append(f"the first of {kind}")
        together.put(slot, rules, prompt, torch.tensor(alone[slot].new), length + STEPS + 1)

    for slot in range(rows - rows // 4):
        begin(slot, kinds[slot % len(kinds)], slot, rng.randint(1, 60))
    for step in range(STEPS):
        if step == REPLACED:
            together.clear(1)
            del alone[1]
        if step == REPLACED + 2:
            begin(1, kinds[-1], 77, 130)
        logits = logits_of(rows)
        before = logits.clone()
        tokens = together.select(logits, lambda slot: alone[slot].new)
        assert torch.equal(logits, before)
        for slot, row in alone.items():
            expected = row.next(logits[slot : slot + 1])
            if int(tokens[slot]) != expected:
                found.append(f"step {step}, row {slot}: {int(tokens[slot])}, alone {expected}")
    return found


SIZES = [(4, 300), (8, 300), pytest.param(64, 300, marks=pytest.mark.slow)]
SIZES += [pytest.param(8, 32_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("whole", [False, True], ids=["its rows", "all rows"])
@pytest.mark.parametrize(("rows", "vocabulary"), SIZES)
@pytest.mark.parametrize("kind", BOTH)
def test_tokens_are_those_of_each_row_alone(
    kind: str, rows: int, vocabulary: int, whole: bool
) -> None:
    assert differing([kind], rows, vocabulary, whole=whole) == []


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["its rows", "all rows"])
def test_rows_of_different_settings_do_not_disturb_each_other(whole: bool) -> None:
    assert differing([*BOTH], 32, 300, whole=whole) == []


def counted(rows: int, monkeypatch: pytest.MonkeyPatch, *, request: bool = True) -> DeviceWaits:
    """What a step starts and waits for, as it would be on a GPU."""
    monkeypatch.setattr(scheduler, "likeliest", lambda logits: logits.argmax(-1))
    together = TokenSelection(rows, whole=True)
    for slot in range(rows):
        rules = RowRules(
            [
                RepetitionPenaltyLogitsProcessor(1.1), NoRepeatNGramLogitsProcessor(3),
                NoBadWordsLogitsProcessor(BAD_WORDS[:4]), refusing(), PresencePenalty(0.7),
                TemperatureLogitsWarper(0.8), TopKLogitsWarper(50), TopPLogitsWarper(0.9),
                SeededSampler([slot]),
            ] if request else []
        )  # fmt: skip
        prompt = torch.randint(0, 300, (1, 20 + slot % 7))
        token = together.first(rules, prompt, torch.randn(1, 300))
        together.put(slot, rules, prompt, token, 60)
    together.select(torch.randn(rows, 300), lambda slot: [slot])
    logits = torch.randn(rows, 300)
    with device_waits() as waits:
        together.select(logits, lambda slot: [slot, 7])
    return waits


@pytest.mark.slow
def test_selection_waits_for_nothing_and_starts_few_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    greedy = counted(64, monkeypatch, request=False)
    found = {rows: counted(rows, monkeypatch) for rows in (64, 8)}
    assert [waits.reads for waits in found.values()] == [{}, {}]
    more = {rows: waits.kernels - greedy.kernels for rows, waits in found.items()}
    assert all(each["aten.exponential_.default"] == rows for rows, each in more.items())
    assert more[64].total() <= 64 + 90, more[64]
    assert more[64].total() - 64 == more[8].total() - 8


PLANNED: Mapping[str, tuple[bool, Callable[[int], Made]]] = {
    "temperature": (True, lambda seed: [TemperatureLogitsWarper(0.8), SeededSampler([seed])]),
    "top_p": (
        True,
        lambda seed: [
            TemperatureLogitsWarper(0.8), TopKLogitsWarper(50), TopPLogitsWarper(0.9),
            SeededSampler([seed]),
        ],
    ),
    "presence_penalty": (False, lambda _: [PresencePenalty(0.7)]),
    "repetition_penalty": (False, lambda _: [RepetitionPenaltyLogitsProcessor(1.1)]),
    "avoid": (False, lambda _: [refusing()]),
}  # fmt: skip
"""Setting → whether a step selects for all rows, as on a GPU, and its processors by a seed."""


def allocated_bytes(work: Callable[[], object]) -> int:
    """The most that torch's allocator gave a piece of work at once."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        work()
    found: Any = profile.profiler
    events = [each for each in found.kineto_results.events() if each.name() == "[memory]"]
    sizes: list[int] = [each.nbytes() for each in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(sizes))


@pytest.mark.parametrize("setting", PLANNED)
def test_the_plan_counts_what_selection_takes(setting: str) -> None:
    (whole, made), rows, vocabulary = PLANNED[setting], 16, 20_000
    together = TokenSelection(rows, whole=whole)
    for slot in range(rows):
        prompt = torch.randint(0, vocabulary, (1, 20))
        together.put(slot, RowRules(made(slot)), prompt, torch.tensor([slot]), 60)
    logits = torch.randn(rows, vocabulary)
    together.select(logits, lambda slot: [slot])
    taken = allocated_bytes(lambda: together.select(logits, lambda slot: [slot, 7]))
    planned = selection_bytes(RowMemory(kept=(), words=vocabulary), rows, score_bytes([setting]))
    assert taken + logits.nbytes == pytest.approx(planned, rel=0.1)


class Stuck(HostMaskProcessor[None]):
    """Cannot go on after a token."""

    def new_row(self) -> None:
        return None

    @staticmethod
    def masks_of(rows: Sequence[None], tokens: Sequence[Sequence[int]], width: int) -> Masks:
        faults = {at: UsageError("stuck", hint="") for at, row in enumerate(tokens) if 3 in row}
        allowed = torch.full((len(rows), width // 8), 0xFF, dtype=torch.uint8).numpy()
        return Masks(allowed=allowed, faults=faults)


@pytest.mark.parametrize("whole", [False, True])
def test_a_row_that_cannot_go_on_ends_by_itself(whole: bool) -> None:
    together, prompt = TokenSelection(8, whole=whole), torch.zeros(1, 4, dtype=torch.long)
    rows = {slot: RowRules([Stuck()], may_fail=True) for slot in (2, 5)}
    for slot, rules in rows.items():
        together.put(slot, rules, prompt, torch.tensor([slot]), 9)
    logits = torch.randn(8, 16)
    for _ in range(2):
        selected = together.select(logits, lambda slot: [slot - 2])
        assert selected.tolist() == logits.argmax(1).tolist()
    assert [rules.fault is not None for rules in rows.values()] == [False, True]
    strict = RowRules([Stuck()])
    together.put(0, strict, prompt, torch.tensor([0]), 9)
    with pytest.raises(UsageError, match="stuck"):
        together.select(logits, lambda slot: [3])

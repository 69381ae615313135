"""Captions that are said in slots: those of each chunk alone, byte for byte, whatever is beside."""

import itertools
import random
import threading
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from artifacts.errors import UsageError
from artifacts.records.claims import claims_at
from stages.decode.constraint import SchemaLogitsProcessor
from stages.decode.engines.inflight import slot_check
from stages.decode.engines.inflight.pool import SlotPool
from stages.decode.engines.inflight.request_prefill import RequestPrefill
from stages.decode.engines.inflight.scheduler import InflightScheduler, PendingTokens
from stages.decode.generation import SamplingParams
from stages.decode.json_schema import canonical
from stages.decode.protocol import DecodeRequest
from stages.decode.run import run
from stages.process.requests import End, Make, RequestPipe
from tests.support.clips import PROMPTS
from tests.support.forms import text_of
from tests.support.hostile import with_json
from tests.support.waves import (
    CAPTIONS,
    OTHER,
    THIRD,
    Wave,
    in_slots,
    keys_told,
    mixed_wave,
    noted,
    told_by,
    words,
)

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"


def keep(wave: Wave, numbers: Sequence[int]) -> None:
    """Let some of the captions be in the store as OTHER."""
    records = [wave.record_set("captions", CAPTIONS).read(f"caption-{n}") for n in numbers]
    wave.record_set("captions", OTHER).publish(records)


@pytest.mark.slow
def test_a_record_is_the_same_alone_among_others_and_in_another_order(tmp_path: Path) -> None:
    wave = mixed_wave(tmp_path, dtype="bfloat16")
    whole = wave.captions()
    assert len({one["tokens"] for one in whole}) > 1
    batch = wave.batches[0]
    wave.batches = [batch[::-1][:7], batch[::-1][7:]]
    in_slots(wave)
    assert wave.captions(OTHER) == whole[::-1]
    wave.batches = [[batch[4]]]
    in_slots(wave, THIRD)
    assert wave.captions(THIRD) == [whole[4]]


@pytest.mark.slow
def test_a_resumed_run_makes_only_what_is_missing_and_makes_it_the_same(tmp_path: Path) -> None:
    wave = mixed_wave(tmp_path, 4, "bfloat16")
    keep(wave, [1, 4, 6, 9])
    message = in_slots(wave)
    missing = [0, 2, 3, 5, 7, 8]
    assert sorted(keys_told(message)) == [f"caption-{n}" for n in missing]
    whole = wave.captions()
    assert noted(message)["row_steps_used"] == sum(whole[n]["tokens"] - 1 for n in missing)
    assert wave.captions(OTHER) == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_ended_anywhere_goes_on_to_the_same_bytes(
    seed: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In another order, in batches of another size, with some of it there, in two threads."""
    torch.set_num_threads(2)
    request.addfinalizer(lambda: torch.set_num_threads(1))
    rng = random.Random(seed)
    wave = mixed_wave(tmp_path, dtype=("float32", "bfloat16")[seed % 2])
    kept = rng.sample(range(10), rng.randrange(10))
    keep(wave, kept)
    whole, (batch,) = wave.captions(), wave.batches
    size = rng.randrange(1, 11)
    rng.shuffle(batch)
    wave.batches = [batch[at : at + size] for at in range(0, 10, size)]
    assert len(keys_told(in_slots(wave))) == 10 - len(kept)
    assert wave.captions(OTHER) == [whole[n] for n, _ in batch]


@pytest.mark.slow
def test_a_slot_is_taken_as_soon_as_its_row_has_ended_longest_captions_first(
    tmp_path: Path,
) -> None:
    wave = mixed_wave(tmp_path, 4, "bfloat16")
    texts = {f"caption-{n}": one["tokens"] for n, one in enumerate(wave.captions())}
    found = noted(in_slots(wave))
    assert found["slots"] == 4
    assert found["row_steps_used"] == sum(texts.values()) - len(texts)
    wasted = found["row_steps"] - found["row_steps_used"]
    assert 0 <= wasted < 4 * max(texts.values()), "it is the slots that nobody is left for"
    message = in_slots(wave, THIRD, previous_lengths=texts)
    assert wave.captions(THIRD) == wave.captions(OTHER) == wave.captions()
    assert noted(message)["row_steps"] <= found["row_steps"]
    assert texts[keys_told(message)[0]] >= min(sorted(texts.values())[-4:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "more"), [(4, {}), (1, {"no_repeat_ngram_size": 2, "min_new_tokens": 24})]
)
def test_what_a_checkpoint_does_to_its_logits_is_done_row_by_row(
    size: int, more: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = {"repetition_penalty": 1.7, **more}
    change = ("generation_config.json", lambda old: {**old, **stated})
    wave = mixed_wave(tmp_path, size)
    wave.model = str(with_json(tmp_path / "model", *change))
    wave.decode(PROMPTS, OTHER, tokens=32)
    calls: list[None] = []
    penalized = RepetitionPenaltyLogitsProcessor.__call__

    def counted(*given: Any) -> Any:
        calls.append(None)
        return penalized(*given)

    monkeypatch.setattr(RepetitionPenaltyLogitsProcessor, "__call__", counted)
    message = in_slots(wave, THIRD)
    assert words(wave.captions(THIRD)) == words(wave.captions(OTHER)) != words(wave.captions())
    assert min(one["tokens"] for one in wave.captions(OTHER)) >= more.get("min_new_tokens", 1)
    if not more:  # a penalty by itself is applied to all rows at once
        in_check = 3 * (slot_check.STEPS + 1)
        steps = noted(message)["row_steps"] // size
        assert len(calls) <= in_check + len(keys_told(message)) + steps, "once per prompt and step"


def rungs(messages: Sequence[dict[str, Any]]) -> list[int]:
    return [event["batch"] for event in messages if event["event"] == "BatchShrunk"]


def failing(whole: Any, calls: Container[int]) -> Any:
    """What a method does, but for some calls, in which memory runs out."""
    count = itertools.count()

    def method(*given: Any, **named: Any) -> Any:
        if next(count) in calls:
            raise RuntimeError(OUT_OF_MEMORY)
        return whole(*given, **named)

    return method


TRIED = 3 * (slot_check.STEPS + slot_check.BEFORE) - slot_check.BEFORE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "of", "name", "fails", "sizes"),
    [
        (8, SlotPool, "step", [TRIED + 4], [4]),
        (8, SlotPool, "step", [TRIED + at for at in (4, 8, 11)], [4, 2, 1]),
        (10, RequestPrefill, "row", [2], []),  # the trial reads two
        (10, RequestPrefill, "row", [6, 7], [8]),
    ],
)
def test_memory_that_runs_out_makes_fewer_slots_and_loses_no_caption(
    size: int, of: type, name: str, fails: list[int], sizes: list[int],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    wave = mixed_wave(tmp_path, size, "bfloat16")
    monkeypatch.setattr(of, name, failing(getattr(of, name), fails))
    message = in_slots(wave)
    assert wave.captions(OTHER) == wave.captions()
    assert sorted(keys_told(message)) == sorted(f"caption-{n}" for n in range(10))
    assert rungs(message) == sizes


def test_an_item_that_is_too_large_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = mixed_wave(tmp_path)
    whole = RequestPrefill.row

    def row(self: Any, request: DecodeRequest, half: Any, **given: Any) -> Any:
        if request.item.key == "caption-3":
            raise RuntimeError(OUT_OF_MEMORY)
        return whole(self, request, half, **given)

    monkeypatch.setattr(RequestPrefill, "row", row)
    message = in_slots(wave)
    (large,) = [event for event in message if event["event"] == "TooLarge"]
    assert (large["key"], large["wanted_bytes"]) == ("caption-3", 2 << 30)
    assert sorted(keys_told(message)) == sorted(f"caption-{n}" for n in range(10) if n != 3)
    assert rungs(message) == []


@pytest.mark.slow
def test_a_half_that_is_not_for_slots_is_refused_or_served_in_batches_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = mixed_wave(tmp_path, 4, "bfloat16")
    monkeypatch.setattr(slot_check, "_same", lambda *_: False)
    with pytest.raises(UsageError, match="depends on neighbouring slots") as caught:
        in_slots(wave)
    assert "transformers" in caught.value.hint
    found = noted(in_slots(wave, engine="auto", fallback_batch=2))
    assert found["engine"] == "transformers"
    assert found["engine_reason"] == "its output depends on neighbouring slots"
    wave.batches = [batch[at : at + 2] for batch in wave.batches for at in range(0, len(batch), 2)]
    wave.settings = {"dtype": "bfloat16"}
    wave.decode(PROMPTS, THIRD, tokens=32)
    assert wave.captions(OTHER) == wave.captions(THIRD)


@pytest.mark.slow
def test_a_trial_that_runs_out_of_memory_is_made_with_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = mixed_wave(tmp_path, 4)
    step = SlotPool.step
    monkeypatch.setattr(SlotPool, "step", failing(step, [0]))
    in_slots(wave)
    assert wave.captions(OTHER) == wave.captions()
    monkeypatch.setattr(SlotPool, "step", failing(step, [0, 1]))
    found = noted(in_slots(wave, THIRD, engine="auto"))
    assert found["engine_reason"].startswith("the check ran out of memory")
    monkeypatch.setattr(SlotPool, "step", failing(step, [0, 1]))
    with pytest.raises(MemoryError):
        in_slots(wave, "ff" * 32)


@pytest.mark.slow
@pytest.mark.parametrize("speaks", ["inflight", "transformers"])
def test_a_caption_of_either_engine_answers_who_leaves_the_choice(
    speaks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its own place in the store, under its own key."""
    wave = mixed_wave(tmp_path)
    job = wave.to_decode(PROMPTS, THIRD, tokens=32)
    job |= {"fallback_namespace": OTHER, "engine": "auto"}
    records = wave.record_set("captions", CAPTIONS)
    theirs, ours = wave.record_set("captions", OTHER), wave.record_set("captions", THIRD)
    for number in (1, 2):
        theirs.publish([replace(records.read(f"caption-{number}"), key=f"old-{number}")])
    ours.publish([records.read("caption-5")])
    if speaks == "transformers":
        monkeypatch.setattr(slot_check, "_same", lambda *_: False)
    job["batches"] = [
        [item._replace(fallback_key=item.key.replace("caption", "old")) for item in batch]
        for batch in job["batches"]
    ]
    made = {0, 3, 4, 6, 7, 8, 9}
    name = "caption" if speaks == "inflight" else "old"
    assert set(keys_told(told_by(run, job))) == {f"{name}-{n}" for n in made}
    ours.refresh()
    theirs.refresh()
    kept = {"caption-5"} if speaks == "transformers" else {f"caption-{n}" for n in {5, *made}}
    assert ours.keys() == kept
    assert len(ours.keys()) + len(theirs.keys()) == 10
    assert told_by(run, job) == [{"event": "Total", "items": 0, "earlier": 0}]


def fed(wave: Wave, pipe: Path, size: int, **more: Any) -> list[dict[str, Any]]:
    """Make captions as OTHER of messages of one batch each."""
    job = {**wave.to_decode(PROMPTS, OTHER, tokens=32), "engine": "inflight", **more}
    items = [item for batch in job["batches"] for item in batch]
    feed = RequestPipe(pipe)
    for at in range(0, len(items), size):
        feed.send(Make(batches=[items[at : at + size]]))
    feed.send(End())
    assert feed.write(), "the pipe took less"
    try:
        return told_by(run, {**job, "batches": [], "requests": str(pipe), "slots": 4})
    finally:
        feed.close()


@pytest.mark.slow
def test_captions_of_what_is_sent_over_a_pipe_are_the_same(tmp_path: Path) -> None:
    wave = mixed_wave(tmp_path, dtype="bfloat16")
    keep(wave, [3])
    told = fed(wave, tmp_path / "pipe", 3)
    assert sorted(keys_told(told)) == [f"caption-{n}" for n in range(10) if n != 3]
    assert noted(told)["engine"] == "inflight"
    assert wave.captions(OTHER) == wave.captions()


def test_a_fed_process_leaves_everything_to_another_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = mixed_wave(tmp_path)
    monkeypatch.setattr(slot_check, "_same", lambda *_: False)
    told = fed(wave, tmp_path / "pipe", 3, engine="auto")
    assert not keys_told(told)
    for kind in ("captions", "failures"):
        assert not wave.record_set(kind, OTHER).keys()


@pytest.mark.slow
def test_rows_in_flight_end_while_another_process_is_waited_for(tmp_path: Path) -> None:
    wave = mixed_wave(tmp_path, 6)
    captions = wave.record_set("captions", OTHER)
    others = [f"caption-{n}" for n in range(6, 10)]
    messages: list[dict[str, Any]] = []
    with claims_at(captions.store, captions) as turns:
        assert turns.take(lambda: others)
        running = threading.Thread(target=lambda: messages.extend(in_slots(wave)))
        running.start()
        for _ in range(600):
            captions.refresh()
            if len(captions.keys()) == 6:
                break
            running.join(0.1)
        assert captions.keys() == {f"caption-{n}" for n in range(6)}
        assert running.is_alive()
        turns.done(others)
    running.join()
    assert len(keys_told(messages)) == 10


@pytest.mark.slow
def test_captions_are_cut_where_they_may_be_no_longer(tmp_path: Path) -> None:
    wave = mixed_wave(tmp_path)
    wave.settings["engine"] = "inflight"
    wave.decode(PROMPTS, OTHER, tokens=5)
    for cut, whole in zip(wave.captions(OTHER), wave.captions(), strict=True):
        assert (cut["tokens"], cut["ended"]) == (5, "length")
        assert whole["caption"].startswith(cut["caption"])
    wave.decode(PROMPTS, THIRD, tokens=1)
    assert {one["tokens"] for one in wave.captions(THIRD)} == {1}


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Tokens are read a step later, as on a GPU. The order of what happens to a step: it is
    started, its masks are computed, it is waited for. Step 0 is what comes before the first."""
    found: list[tuple[str, int]] = []
    running = [0]
    init, scheduled = InflightScheduler.__init__, InflightScheduler._step
    step, read, masks_of = SlotPool.step, PendingTokens.read, SchemaLogitsProcessor.masks_of

    def later(*given: Any, **named: Any) -> None:
        init(*given, **{**named, "lag": 1})

    def whole(scheduler: InflightScheduler) -> None:
        running[0] = scheduler._steps + 1
        scheduled(scheduler)
        running[0] = 0

    def start(pool: Any) -> Any:
        found.append(("start", running[0]))
        return step(pool)

    def masks(rows: Any, tokens: Any, width: int) -> Any:
        found.append(("masks", running[0]))
        return masks_of(rows, tokens, width)

    def wait(pending: PendingTokens) -> Any:
        if pending._read is None:
            found.append(("wait", pending.step))
        return read(pending)

    monkeypatch.setattr(InflightScheduler, "__init__", later)
    monkeypatch.setattr(InflightScheduler, "_step", whole)
    monkeypatch.setattr(SlotPool, "step", start)
    monkeypatch.setattr(SchemaLogitsProcessor, "masks_of", staticmethod(masks))
    monkeypatch.setattr(PendingTokens, "read", wait)
    return found


@pytest.mark.slow
def test_no_token_is_read_before_the_next_step_was_started(
    order: list[tuple[str, int]], tmp_path: Path
) -> None:
    wave = mixed_wave(tmp_path, 4)
    message = in_slots(wave)
    assert wave.captions(OTHER) == wave.captions()
    tokens = sum(one["tokens"] for one in wave.captions())
    assert noted(message)["row_steps_used"] == tokens - len(wave.captions())
    waits = [(at, step) for at, (kind, step) in enumerate(order) if kind == "wait"]
    assert {step for _, step in waits} >= {0, 1}
    last = max(step for kind, step in order if kind == "start")
    early = [(at, step) for at, step in waits if at < order.index(("start", min(step + 1, last)))]
    assert early == []


@pytest.mark.slow
def test_masks_are_computed_while_their_step_runs(
    order: list[tuple[str, int]], tmp_path: Path
) -> None:
    wave = mixed_wave(tmp_path, 4)
    number = {"type": "integer", "minimum": 10**7, "maximum": 10**8 - 1}  # of eight tokens
    fields = {"type": "object", "properties": {"n": number, "m": number}, "required": ["n", "m"]}
    form = canonical(text_of(fields))
    request = SamplingParams(schema=form, avoid=("a",)).non_defaults
    in_slots(wave, generation=request)
    wave.settings["engine"] = "transformers"
    wave.decode(PROMPTS, THIRD, tokens=32)
    assert words(wave.captions(OTHER)) == words(wave.captions(THIRD))
    # The checks of slots come before; each counts its steps from one.
    del order[: max(at for at, step in enumerate(order) if step == ("start", 1))]
    masked = [step for kind, step in order if kind == "masks" and step]
    assert len(masked) > 20
    for step in masked:
        started, masks = order.index(("start", step)), order.index(("masks", step))
        waited = [at for at, each in enumerate(order) if each == ("wait", step)]
        assert started < masks < min(waited, default=len(order)), f"step {step}"

"""Captions that are said in slots: those of each chunk alone, byte for byte, whatever is beside."""

import atexit
import functools
import itertools
import json
import random
import shutil
import tempfile
import threading
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.claims import turns_at
from artifacts.errors import UsageError
from penstock_demo import CHECKPOINT
from stages.decode.engines.inflight import trial
from stages.decode.engines.inflight.coming import Coming, coming
from stages.decode.engines.inflight.engine import InFlight
from stages.decode.engines.inflight.pool import Pool
from stages.decode.protocol import Asked
from stages.models.processors.prepare import Clip
from tests.support.clips import PROMPTS, clips
from tests.support.families import BUILDERS, checkpoint
from tests.support.waves import CAPTIONS, Wave, keys_told

OTHER = "dd" * 32
THIRD = "ee" * 32
WORDS = "CUDA out of memory. Tried to allocate 2.00 GiB"


def mixed() -> list[Clip]:
    """Clips whose prompts are of four lengths."""
    small = clips("video", 3, frames=8, height=64, width=64)
    return [*small, *clips("video", 3), *clips("video", 2, frames=8), *clips("image", 2)]


@functools.cache
def encoded(dtype: str) -> Path:
    """A store with the features of `mixed`, made once; not to be written to."""
    root = tempfile.TemporaryDirectory()
    atexit.register(root.cleanup)
    Wave(Path(root.name), CHECKPOINT, [mixed()], dtype=dtype).encode()
    return Path(root.name)


def wave_of(folder: Path, size: int, model: Path = CHECKPOINT, dtype: str = "float32") -> Wave:
    """A wave of `mixed` in batches of so many, encoded."""
    shutil.copytree(encoded(dtype), folder / "store")
    every = mixed()
    batches = [every[at : at + size] for at in range(0, len(every), size)]
    return Wave(folder / "store", model, batches, dtype=dtype)


def in_slots(wave: Wave, scope: str = CAPTIONS, **settings: Any) -> list[dict[str, Any]]:
    """Run the stage with the engine; returns the events it told."""
    wave.settings |= {"engine": "inflight", **settings}
    return wave.decode(PROMPTS, scope, tokens=32)


def words(found: Sequence[dict[str, Any]]) -> list[tuple[str, int, str]]:
    return [(one["caption"], one["tokens"], one["ended"]) for one in found]


def noted(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: value for event in told if event["event"] == "note" for name, value in event.items()
    }


@pytest.mark.parametrize("kind", ["image", pytest.param("video", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", BUILDERS)
def test_captions_in_slots_are_those_of_each_chunk_alone(
    family: str, kind: str, tmp_path: Path
) -> None:
    wave = Wave(tmp_path, checkpoint(family), [[clip] for clip in clips(kind, 5)])
    wave.encode()
    wave.decode(PROMPTS)
    wave.settings["engine"] = "inflight"
    told = wave.decode(PROMPTS, OTHER)
    assert words(wave.captions(OTHER)) == words(wave.captions())
    assert sorted(keys_told(told)) == [f"caption-{n}" for n in range(5)]
    stored = wave.captions(OTHER)[0]
    assert (stored["engine"], stored["engine_version"]) == ("inflight", 1)
    assert noted(told)["engine"] == "inflight"


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_a_record_is_the_same_alone_among_others_and_in_another_order(
    dtype: str, tmp_path: Path
) -> None:
    wave = wave_of(tmp_path, 10, dtype=dtype)
    in_slots(wave)
    whole = wave.captions()
    assert len({one["tokens"] for one in whole}) > 1
    batch = wave.batches[0]
    wave.batches = [batch[::-1][:7], batch[::-1][7:]]
    in_slots(wave, OTHER)
    assert wave.captions(OTHER) == whole[::-1]
    wave.batches = [[batch[4]]]
    in_slots(wave, THIRD)
    assert wave.captions(THIRD) == [whole[4]]


@pytest.mark.slow
def test_a_record_is_the_same_with_one_thread_and_with_two(tmp_path: Path) -> None:
    wave = wave_of(tmp_path, 10, dtype="bfloat16")
    threads = torch.get_num_threads()
    try:
        for number, scope in ((1, CAPTIONS), (2, OTHER)):
            torch.set_num_threads(number)
            in_slots(wave, scope)
    finally:
        torch.set_num_threads(threads)
    assert wave.captions(OTHER) == wave.captions()


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param([0], marks=pytest.mark.slow),
        [1, 4, 6, 9],
        pytest.param([8, 9], marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_makes_only_what_is_missing_and_makes_it_the_same(
    kept: list[int], tmp_path: Path
) -> None:
    wave = wave_of(tmp_path, 4, dtype="bfloat16")
    in_slots(wave)
    records = [wave.record_set("captions", CAPTIONS).read(f"caption-{n}") for n in kept]
    wave.record_set("captions", OTHER).publish(records)
    told = in_slots(wave, OTHER)
    missing = set(range(10)) - set(kept)
    assert sorted(keys_told(told)) == [f"caption-{n}" for n in sorted(missing)]
    assert noted(told)["row_steps_used"] == sum(wave.captions()[n]["tokens"] - 1 for n in missing)
    assert wave.captions(OTHER) == wave.captions()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_ended_anywhere_goes_on_to_the_same_bytes(seed: int, tmp_path: Path) -> None:
    """In another order, in batches of another size, with some of it there."""
    rng = random.Random(seed)
    wave = wave_of(tmp_path, 10, dtype=rng.choice(["float32", "bfloat16"]))
    in_slots(wave)
    whole = wave.captions()
    kept = rng.sample(range(10), rng.randrange(10))
    records = [wave.record_set("captions", CAPTIONS).read(f"caption-{n}") for n in kept]
    wave.record_set("captions", OTHER).publish(records)
    (batch,) = wave.batches
    size = rng.randrange(1, 11)
    rng.shuffle(batch)
    wave.batches = [batch[at : at + size] for at in range(0, 10, size)]
    assert len(keys_told(in_slots(wave, OTHER))) == 10 - len(kept)
    assert wave.captions(OTHER) == [whole[n] for n, _ in batch]


def test_a_slot_is_taken_as_soon_as_its_row_has_ended(tmp_path: Path) -> None:
    wave = wave_of(tmp_path, 4)
    found = noted(in_slots(wave))
    tokens = {number: one["tokens"] for number, one in enumerate(wave.captions())}
    assert found["slots"] == 4
    assert found["row_steps_used"] == sum(tokens.values()) - len(tokens)
    wasted = found["row_steps"] - found["row_steps_used"]
    assert 0 <= wasted < 4 * max(tokens.values()), "it is the slots that nobody is left for"


@pytest.mark.slow
def test_what_a_checkpoint_does_to_its_logits_is_done_row_by_row(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "min_new_tokens": 24}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    wave = wave_of(tmp_path, 1, folder)
    wave.decode(PROMPTS, tokens=32)
    in_slots(wave, OTHER)
    assert words(wave.captions(OTHER)) == words(wave.captions())
    assert min(one["tokens"] for one in wave.captions()) >= 24
    plain = wave_of(tmp_path / "plain", 10)
    in_slots(plain)
    assert plain.captions() != wave.captions(OTHER)


def test_captions_are_cut_where_they_may_be_no_longer(tmp_path: Path) -> None:
    wave = wave_of(tmp_path, 10)
    in_slots(wave)
    wave.decode(PROMPTS, OTHER, tokens=5)
    for cut, whole in zip(wave.captions(OTHER), wave.captions(), strict=True):
        assert (cut["tokens"], cut["ended"]) == (5, "length")
        assert whole["caption"].startswith(cut["caption"])
    wave.decode(PROMPTS, THIRD, tokens=1)
    assert {one["tokens"] for one in wave.captions(THIRD)} == {1}


def rungs(told: Sequence[dict[str, Any]]) -> list[int]:
    return [event["batch"] for event in told if event["event"] == "rung"]


def failing(whole: Any, calls: Container[int]) -> Any:
    """What a method does, but for some calls, in which memory runs out."""
    count = itertools.count()

    def method(*given: Any) -> Any:
        if next(count) in calls:
            raise RuntimeError(WORDS)
        return whole(*given)

    return method


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails", "sizes"), [([4], [4]), ([4, 8, 11], [4, 2, 1]), ([4, 5, 6, 7], [4, 2, 1])]
)
def test_memory_that_runs_out_at_a_step_makes_fewer_slots_and_loses_no_caption(
    fails: list[int], sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = wave_of(tmp_path, 8)
    in_slots(wave)
    tried = 3 * (trial.STEPS + trial.BEFORE)
    fails = [tried - trial.BEFORE + at for at in fails]
    monkeypatch.setattr(Pool, "step", failing(Pool.step, fails))
    told = in_slots(wave, OTHER)
    assert wave.captions(OTHER) == wave.captions()
    assert sorted(keys_told(told)) == sorted(f"caption-{n}" for n in range(10))
    assert rungs(told) == sizes


@pytest.mark.parametrize(
    ("fails", "sizes"),
    [
        pytest.param([0], [], marks=pytest.mark.slow),
        pytest.param([5], [], marks=pytest.mark.slow),
        ([4, 5], [8]),
    ],
)
@pytest.mark.slow
def test_memory_that_runs_out_as_a_prompt_is_read_loses_no_caption(
    fails: list[int], sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = wave_of(tmp_path, 10)
    in_slots(wave)
    after = [at + 2 for at in fails]  # the trial reads two
    monkeypatch.setattr(InFlight, "_row", failing(InFlight._row, after))
    told = in_slots(wave, OTHER)
    assert wave.captions(OTHER) == wave.captions()
    assert sorted(keys_told(told)) == sorted(f"caption-{n}" for n in range(10))
    assert rungs(told) == sizes


def test_an_item_that_is_too_large_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = wave_of(tmp_path, 10)
    whole = InFlight._row

    def row(self: Any, asked: Asked, half: Any, **given: Any) -> Any:
        if asked.member["key"] == "caption-3":
            raise RuntimeError(WORDS)
        return whole(self, asked, half, **given)

    monkeypatch.setattr(InFlight, "_row", row)
    told = in_slots(wave)
    (large,) = [event for event in told if event["event"] == "too_large"]
    assert (large["key"], large["wanted_bytes"]) == ("caption-3", 2 << 30)
    assert sorted(keys_told(told)) == sorted(f"caption-{n}" for n in range(10) if n != 3)
    assert rungs(told) == []


def test_a_half_that_is_not_for_slots_is_refused_or_served_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = wave_of(tmp_path, 10)
    wave.decode(PROMPTS, tokens=32)
    monkeypatch.setattr("stages.decode.engines.inflight.trial._same", lambda *_: False)
    with pytest.raises(UsageError, match="hang on what is beside") as caught:
        in_slots(wave, OTHER)
    assert "transformers" in caught.value.hint
    told = in_slots(wave, OTHER, engine="auto")
    assert wave.captions(OTHER) == wave.captions()
    found = noted(told)
    assert found["engine"] == "transformers"
    assert found["engine_reason"] == "its numbers hang on what is beside a row"


@pytest.mark.slow
def test_a_trial_that_runs_out_of_memory_is_made_with_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = wave_of(tmp_path, 4)
    step = Pool.step
    monkeypatch.setattr(Pool, "step", failing(step, [0]))
    in_slots(wave)
    assert len(wave.captions()) == 10
    monkeypatch.setattr(Pool, "step", failing(step, [0, 1]))
    found = noted(in_slots(wave, OTHER, engine="auto"))
    assert found["engine_reason"].startswith("there was not the memory to try it")
    monkeypatch.setattr(Pool, "step", failing(step, [0, 1]))
    with pytest.raises(MemoryError):
        in_slots(wave, THIRD)


def test_who_has_no_slots_is_told_a_batch_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = wave_of(tmp_path, 4, dtype="bfloat16")
    wave.settings |= {"engine": "auto", "batch_instead": 2}
    monkeypatch.setattr("stages.decode.engines.inflight.trial._same", lambda *_: False)
    wave.decode(PROMPTS, tokens=32)
    wave.batches = [batch[at : at + 2] for batch in wave.batches for at in range(0, len(batch), 2)]
    wave.settings = {"dtype": "bfloat16"}
    wave.decode(PROMPTS, OTHER, tokens=32)
    assert wave.captions(OTHER) == wave.captions()


def test_what_was_said_before_decides_the_order_and_no_byte(tmp_path: Path) -> None:
    wave = wave_of(tmp_path, 3, dtype="bfloat16")
    found = noted(in_slots(wave))
    said = {f"caption-{n}": one["tokens"] for n, one in enumerate(wave.captions())}
    told = in_slots(wave, OTHER, said_before=said)
    assert wave.captions(OTHER) == wave.captions()
    first = keys_told(told)[0]
    assert noted(told)["row_steps"] <= found["row_steps"]
    assert said[first] >= min(sorted(said.values())[-3:])


@pytest.mark.parametrize("speaks", ["inflight", "transformers"])
def test_a_caption_of_either_engine_answers_who_leaves_the_choice(
    speaks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its own place in the store, under its own key."""
    wave = wave_of(tmp_path, 10)
    other = wave.to_decode(PROMPTS, OTHER, tokens=32)
    in_slots(wave)
    record_set = wave.record_set("captions", CAPTIONS)
    theirs, ours = wave.record_set("captions", OTHER), wave.record_set("captions", THIRD)
    theirs.publish([_renamed(record_set.read(f"caption-{n}"), f"old-{n}") for n in (1, 2)])
    ours.publish([record_set.read("caption-5")])
    if speaks == "transformers":
        monkeypatch.setattr("stages.decode.engines.inflight.trial._same", lambda *_: False)
    job = {**other, "namespace": THIRD, "instead": OTHER, "engine": "auto"}
    for batch in job["batches"]:
        for member in batch:
            member["instead"] = member["key"].replace("caption", "old")
    told = _run(job)
    made = {0, 3, 4, 6, 7, 8, 9}
    name = "caption" if speaks == "inflight" else "old"
    assert set(keys_told(told)) == {f"{name}-{n}" for n in made}
    ours.refresh()
    theirs.refresh()
    kept = {"caption-5"} if speaks == "transformers" else {f"caption-{n}" for n in {5, *made}}
    assert ours.keys() == kept
    assert len(ours.keys()) + len(theirs.keys()) == 10
    assert _run(job) == [{"event": "total", "items": 0}]


def _renamed(record: Any, key: str) -> Any:
    return type(record)(key=key, meta=record.meta, payload=record.payload)


def _run(job: dict[str, Any]) -> list[dict[str, Any]]:
    from stages.decode.run import run
    from tests.support.waves import events

    with events() as (report, told):
        run(job, report)
    return told


def test_rows_in_flight_end_while_another_process_is_waited_for(tmp_path: Path) -> None:
    wave = wave_of(tmp_path, 6)
    captions = wave.record_set("captions", CAPTIONS)
    others = [f"caption-{n}" for n in range(6, 10)]
    told: list[dict[str, Any]] = []
    wave.settings["engine"] = "inflight"
    with turns_at(captions.store, captions) as turns:
        assert turns.take(lambda: others)
        running = threading.Thread(target=lambda: told.extend(wave.decode(PROMPTS, tokens=32)))
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
    assert len(keys_told(told)) == 10


def test_rows_are_taken_one_batch_ahead_and_in_order() -> None:
    row: Any = None
    taken: list[int] = []

    def batches() -> Any:
        for number in range(3):
            taken.append(number)
            yield [Asked({"key": f"{number}{letter}"}, row) for letter in "ab"]

    with coming(batches()) as rows:
        keys = []
        while (asked := rows.take(wait=True)) is not None:
            keys.append(asked.member["key"])
    assert keys == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert taken == [0, 1, 2]


def test_nobody_waits_for_rows_while_there_are_others() -> None:
    row: Any = None
    go = threading.Event()

    def batches() -> Any:
        go.wait()
        yield [Asked({"key": "a"}, row)]

    with ThreadPoolExecutor(1) as beside:
        rows = Coming(batches(), beside)
        assert rows.take(wait=False) is None
        go.set()
        found = rows.take(wait=True)
        assert found is not None and found.member["key"] == "a"
        assert rows.take(wait=True) is None
